"""Tables 2 and 3 and Figures 3 and 4: every method at 1, 2, 4, 8 and 16 shots, three seeds.

    python run.py --mode=sweep --config=configs/sweep.py --workdir=runs/sweep \
      --config.benchmarks="('eurosat','dtd')" --config.run.data.root=DATA
    python run.py --mode=report --workdir=runs/sweep

Every run also measures zero-shot CLIP, which therefore needs no runs of its own. For the
backbones of Table 3 add
--config.grid.clip="('openai/clip-vit-base-patch32','openai/clip-vit-base-patch16')".
"""

from ml_collections import ConfigDict

from fgvpl_jax.methods import METHODS
from fgvpl_jax.sweeps.cells import sweep_config


def get_config() -> ConfigDict:
    config = sweep_config(tuple(name for name in METHODS if name != "zero_shot"))
    config.benchmarks = ("imagenet",)
    # Closed forms choose by likelihood, the other methods by their authors' rule.
    for name in ("gda", "kernel_ridge", "kernel_ridge_plain"):
        config.by_method[name].selection_rule = "likelihood"
    config.grid.shots = (1, 2, 4, 8, 16)
    config.grid.seed = (1, 2, 3)
    return config
