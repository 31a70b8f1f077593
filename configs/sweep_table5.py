"""Table 5: FG-VPL at 16 shots for five values of beta (Eq. 19).

    python run.py --mode=sweep --config=configs/sweep_table5.py --workdir=runs/sweep \
      --config.run.data.root=DATA

In the workdir of the sweep of `configs/sweep.py`, both share the runs at the paper's setting.
"""

from ml_collections import ConfigDict

from fgvpl_jax.sweeps.cells import sweep_config


def get_config() -> ConfigDict:
    config = sweep_config(("fg_vpl",))
    config.benchmarks = ("imagenet",)
    config.grid.shots = (16,)
    config.grid.seed = (1, 2, 3)
    config.grid.object_logit_weight = (0.1, 0.3, 0.5, 0.7, 0.9)
    return config
