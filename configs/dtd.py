"""DTD: 47 textures; 2,820 / 1,128 / 1,692 (train / validation / test).

    python run.py --config=configs/dtd.py --workdir=runs/dtd

Layout below `data.root`: `dtd/images/<class>/*.jpg`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("dtd")
