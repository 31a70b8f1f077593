"""Caltech101: 100 classes of objects; 4,128 / 1,649 / 2,465 (train / validation / test).

    python run.py --config=configs/caltech101.py --workdir=runs/caltech101

Layout below `data.root`: `caltech-101/101_ObjectCategories/<class>/*.jpg`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("caltech101")
