"""One's own photos: a folder with one folder per class, named as the class.

    python run.py --config=configs/folder.py --config.data.root=~/photos --workdir=runs/photos

Or `train/`, `val/` and `test/` folders of class folders below the root, or a list of photos:
`--config.data.root=~/photos/list.csv` with columns path, label and, if wanted, split.
"""

from ml_collections.config_dict import placeholder

from fgvpl_jax.runs import default_config


def get_config():
    config = default_config.get_config()
    config.benchmark = "folder"
    config.data.source = "folder"
    config.shots = placeholder(int)  # all there are
    return config
