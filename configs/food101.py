"""Food101: 101 dishes, 50,500 / 20,200 / 30,300.

    python run.py --config=configs/food101.py --workdir=runs/food101

Layout: `food-101/images/<class>/*.jpg` and `food-101/split_zhou_Food101.json` below `data.root`,
as CoOp's users have it.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.benchmark = "food101"
    config.data.split_file = "food-101/split_zhou_Food101.json"
    config.data.image_dir = "food-101/images"
    config.data.templates = ("a photo of {}, a type of food.",)
    return config
