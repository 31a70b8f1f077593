"""The demonstration: drawn scenes and a tiny CLIP that is stored in this repository.

    make demo

The classes are ten pairs of colour and shape that the CLIP of `demo/clip` never saw together.
"""

from pathlib import Path

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    config = default_config.get_config()
    config.benchmark = "shapes"
    config.clip = str(Path(__file__).resolve().parents[1] / "demo" / "clip")
    config.data.source = "shapes"
    config.data.templates = ("a drawing of a {}.",)
    return config
