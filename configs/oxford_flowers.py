"""Flowers102: 102 flowers; 4,093 / 1,633 / 2,463 (train / validation / test).

    python run.py --config=configs/oxford_flowers.py --workdir=runs/oxford_flowers

Layout below `data.root`: `oxford_flowers/jpg/*.jpg` and `oxford_flowers/imagelabels.mat`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("oxford_flowers")
