"""OxfordPets: 37 breeds of cats and dogs; 2,944 / 736 / 3,669 (train / validation / test).

    python run.py --config=configs/oxford_pets.py --workdir=runs/oxford_pets

Layout below `data.root`: `oxford_pets/images/*.jpg` and `oxford_pets/annotations/`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("oxford_pets")
