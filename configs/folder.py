"""Your own photos: a folder with one folder per class, named after the class.

    python run.py --config=configs/folder.py --config.data.root=~/photos --workdir=runs/photos

The root may also hold the folders `train/`, `val/` and `test/`, each with class folders. Or
it is a list of photos: `--config.data.root=~/photos/list.csv`, with the columns path, label and
(optional) split.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    config = default_config.get_config()
    config.benchmark = "folder"
    config.data.source = "folder"
    config.shots = placeholder(int)  # all images
    config.selection_rule = "likelihood"  # few validation photos tell little by their accuracy
    return config
