"""Table 4: FG-VPL at 16 shots for five values of alpha (Eq. 10).

    python run.py --mode=sweep --config=configs/sweep_table4.py --workdir=runs/sweep \
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
    config.grid.text_residual_ratio = (0.01, 0.05, 0.10, 0.15, 0.20)
    return config
