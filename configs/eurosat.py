"""EuroSAT: 10 classes of satellite photos; 13,500 / 5,400 / 8,100 (train / validation / test).

    python run.py --config=configs/eurosat.py --workdir=runs/eurosat

Layout below `data.root`: `eurosat/2750/<Class>/*.jpg`.
The paper reports 45.7 points above zero-shot CLIP at 16 shots (ViT-B/16).
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("eurosat")
