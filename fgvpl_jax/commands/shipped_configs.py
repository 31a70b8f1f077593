"""Finds the files of `configs/`: next to the package in a checkout, in the package if installed."""

import importlib.util
from pathlib import Path

from ml_collections import ConfigDict
from ml_collections.config_flags.config_flags import ConfigFileFlagParser

from fgvpl_jax.errors import UserError

_PACKAGE = Path(__file__).parents[1]
FOLDER = next(
    (place for place in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if place.is_dir()),
    Path("configs"),
)


class ConfigFileParser(ConfigFileFlagParser):
    """Reads `--config=configs/<name>.py` from the shipped files if the path does not exist."""

    def parse(self, path: str) -> ConfigDict:
        """Returns the config that a file defines."""
        shipped = FOLDER / Path(path).name
        if Path(path).parent == Path("configs") and not Path(path).exists() and shipped.exists():
            path = str(shipped)
        return super().parse(path)


def config_named(name: str) -> ConfigDict:
    """Returns the config of a benchmark, which is named like its file in `configs/`.

    Raises:
        UserError: If the folder has no such file.
    """
    files = {file.stem: file for file in FOLDER.glob("*.py")}
    names = sorted(n for n in files if n != "__init__" and not n.startswith("sweep"))
    if name not in names:
        raise UserError(
            f"there is no benchmark {name!r} in configs/: choose from {', '.join(names)}"
        )
    spec = importlib.util.spec_from_file_location(f"{name}_config", files[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
