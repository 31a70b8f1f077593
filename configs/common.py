"""Every field and the paper's defaults: see `fgvpl_jax/apps/default_config.py`.

They live in the package, because `fgvpl_jax.fit` needs them without this folder.
"""

from importlib import import_module
from pathlib import Path

from ml_collections import ConfigDict

from fgvpl_jax.apps.default_config import benchmark_config, get_config
from fgvpl_jax.errors import UserError

__all__ = ["benchmark_config", "config_named", "get_config"]


def config_named(name: str) -> ConfigDict:
    """The settings of a benchmark by the name of its file in this folder.

    Raises:
        UserError: If the folder has none.
    """
    files = {file.stem for file in Path(__file__).parent.glob("*.py")}
    names = sorted(n for n in files - {"__init__", "common"} if not n.startswith("sweep"))
    if name not in names:
        raise UserError(f"there is no benchmark {name!r} in configs/: it has {', '.join(names)}")
    return import_module(f"configs.{name}").get_config()
