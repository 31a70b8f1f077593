"""SUN397: 397 scenes; 15,880 / 3,970 / 19,850 (train / validation / test).

    python run.py --config=configs/sun397.py --workdir=runs/sun397

Layout below `data.root`: `sun397/SUN397/a/abbey/*.jpg` and so on.
The paper reports 16.1 points above zero-shot CLIP at 16 shots (ViT-B/16).
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("sun397")
