"""ImageNet: 1,000 classes, 1.28M training images; its 50,000 validation images are the test split.

    python run.py --config=configs/imagenet.py --workdir=runs/imagenet

Layout below `data.root`: `imagenet/images/{train,val}/<code>/*.JPEG` and `imagenet/classnames.txt`.
The paper reports 75.5% at 16 shots, 68.7% for zero-shot CLIP (ViT-B/16).
"""

from ml_collections import ConfigDict

from fgvpl_jax.runs import default_config


def get_config() -> ConfigDict:
    return default_config.benchmark_config("imagenet")
