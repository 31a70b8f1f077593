"""Food101: 101 dishes; 50,500 / 20,200 / 30,300 (train / validation / test).

    python run.py --config=configs/food101.py --workdir=runs/food101

Layout below `data.root`: `food-101/images/<class>/*.jpg`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("food101")
