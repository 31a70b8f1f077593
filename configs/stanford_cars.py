"""StanfordCars: 196 models; 6,509 / 1,635 / 8,041 (train / validation / test).

    python run.py --config=configs/stanford_cars.py --workdir=runs/stanford_cars

Layout below `data.root`: `stanford_cars/cars_*/*.jpg` and the annotations next to them.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("stanford_cars")
