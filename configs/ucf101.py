"""UCF101: 101 actions; 7,639 / 1,898 / 3,783 middle frames of videos (train / validation / test).

    python run.py --config=configs/ucf101.py --workdir=runs/ucf101

Layout below `data.root`: `ucf101/UCF-101-midframes/<Action>/*.jpg`, see docs/datasets.md.
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("ucf101")
