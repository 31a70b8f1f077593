"""The files of `configs/`: beside the package in a checkout, within it where it is installed."""

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
    """`--config=configs/<name>.py` that is not there is the one that came with the program."""

    def parse(self, path: str) -> ConfigDict:
        """The config of a file."""
        shipped = FOLDER / Path(path).name
        if Path(path).parent == Path("configs") and not Path(path).exists() and shipped.exists():
            path = str(shipped)
        return super().parse(path)


def config_named(name: str) -> ConfigDict:
    """The settings of a benchmark by the name of its file in `configs/`.

    Raises:
        UserError: If the folder has none.
    """
    files = {file.stem: file for file in FOLDER.glob("*.py")}
    names = sorted(n for n in files if n != "__init__" and not n.startswith("sweep"))
    if name not in names:
        raise UserError(f"there is no benchmark {name!r} in configs/: it has {', '.join(names)}")
    spec = importlib.util.spec_from_file_location(f"{name}_config", files[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()
