"""Every field and the paper's defaults: see `fgvpl_jax/apps/default_config.py`.

They live in the package, because `fgvpl_jax.fit` needs them without this folder.
"""

from fgvpl_jax.apps.default_config import benchmark_config, get_config

__all__ = ["benchmark_config", "get_config"]
