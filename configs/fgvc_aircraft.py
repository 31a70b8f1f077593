"""FGVC-Aircraft: 100 variants of aircraft; 3,334 / 3,333 / 3,333 (train / validation / test).

    python run.py --config=configs/fgvc_aircraft.py --workdir=runs/fgvc_aircraft

Layout below `data.root`: `fgvc_aircraft/images/*.jpg` and `fgvc_aircraft/images_variant_*.txt`.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("fgvc_aircraft")
