"""EuroSAT: 10 classes of satellite photos, 13,500 / 5,400 / 8,100.

    python run.py --config=configs/eurosat.py --workdir=runs/eurosat

Layout: `eurosat/2750/<Class>/*.jpg` and `eurosat/split_zhou_EuroSAT.json` below `data.root`.
The paper reports 45.7 points above zero-shot CLIP at 16 shots (ViT-B/16).
"""

from configs import common


def get_config():
    config = common.get_config()
    config.benchmark = "eurosat"
    config.data.split_file = "eurosat/split_zhou_EuroSAT.json"
    config.data.image_dir = "eurosat/2750"
    config.data.templates = ("a centered satellite photo of {}.",)
    config.epochs = 400
    return config
