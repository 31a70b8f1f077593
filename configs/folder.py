"""One's own photos: a folder with one folder per class, named as the class.

    python run.py --config=configs/folder.py --config.data.root=~/photos --workdir=runs/photos

Or `train/`, `val/` and `test/` folders of class folders below the root.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.benchmark = "folder"
    config.data.source = "folder"
    return config
