"""The cells of a sweep: the runs that its config describes."""

import hashlib
import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fgvpl_jax.errors import UserError
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.settings import check_config, flatten

ConfigNamed = Callable[[str], ConfigDict]

SLOWEST_AXES = ("seed", "benchmark", "clip", "method")  # finishes a whole table for one seed first
# In the path of every cell; other settings are in it only if the grid changes them.
IN_FOLDERS = (*SLOWEST_AXES, "shots")
LONGEST_VALUE = 40


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: Path of its folder below the sweep's `cells`:
            `benchmark/backbone/method/shots=…,seed=…`.
        config: Complete config of the run.
        keeps_model: Whether its checkpoint and cache are kept when it is finished.
    """

    name: str
    config: ConfigDict
    keeps_model: bool


def sweep_config(methods: tuple[str, ...]) -> ConfigDict:
    """Returns a sweep's config with every field open.

    A field that stays None keeps its value in `configs/<benchmark>.py`.

    Args:
        methods: Initial methods of the grid; `by_method` has an entry for each.
    """
    config = ConfigDict()
    config.benchmarks = ()  # names of files in configs/
    config.run = _unset()  # settings of every cell
    config.by_method = ConfigDict({name: _unset() for name in methods})
    config.grid = _unset(tuple)  # values, every combination of which is a cell
    config.grid.method = methods
    # A trained ViT-B/16 takes 100 MB. By default a sweep keeps one model for every method and
    # setting, that of the first seed at the most shots, with which the report draws pictures.
    config.keep_all_models = False
    return config


def cells_of(config: ConfigDict, config_named: ConfigNamed) -> list[Cell]:
    """Returns every run of a sweep, in the order in which they run.

    Args:
        config: Config made by `sweep_config`. A value in `grid` takes precedence over one in
            `by_method`, that over one in `run`, and that over the benchmark's own.
        config_named: Returns the config of a name in `benchmarks`.
    Raises:
        UserError: If there is nothing to run, or a run would have invalid settings.
    """
    grid = {"benchmark": config.benchmarks, **_given(config.grid)}
    for name, values in grid.items():
        if not isinstance(values, tuple) or not values:
            raise UserError(
                f"the sweep's values of {name} are {values!r}: give at least one, as in "
                "--config.benchmarks=\"('eurosat','dtd')\" or --config.grid.shots=\"(1,2)\""
            )
    axes = [name for name in SLOWEST_AXES if name in grid]
    axes += sorted(grid.keys() - {*axes, "shots"}) + ["shots"] * ("shots" in grid)
    own = {name: config_named(name) for name in config.benchmarks}
    cells: dict[str, Cell] = {}
    for point in itertools.product(*(grid[name] for name in axes)):
        chosen = dict(zip(axes, point, strict=True))
        cell = _cell(own[chosen["benchmark"]], chosen, config)
        other = cells.setdefault(cell.name, cell).config.clip
        if other != cell.config.clip:
            raise UserError(
                f"the backbones {other!r} and {cell.config.clip!r} would share a folder, because "
                "both have the same name: rename one"
            )
    return list(cells.values())


def _cell(own: ConfigDict, chosen: Mapping[str, Any], sweep: ConfigDict) -> Cell:
    """Returns the cell at one point of the grid; `own` holds the benchmark's settings."""
    settings = own.copy_and_resolve_references()
    benchmark = chosen["benchmark"]
    chosen = {name: value for name, value in chosen.items() if name != "benchmark"}
    _update(settings, _given(sweep.run))
    method = chosen.get("method", settings.method)
    if method in sweep.by_method:
        _update(settings, _given(sweep.by_method[method]))
    before = flatten(settings.to_dict())
    _update(settings, chosen)
    check_config(settings)
    parts = [f"shots={settings.shots}", f"seed={settings.seed}"]
    parts += [
        f"{name}={_slug(value)}"
        for name, value in flatten(settings.to_dict()).items()
        if name not in IN_FOLDERS and value != before[name]
    ]
    folders = [benchmark, Path(settings.clip).name, settings.method, ",".join(parts)]
    most_shots = max((n for n in sweep.grid.shots or () if n is not None), default=settings.shots)
    is_first_seed = not sweep.grid.seed or settings.seed == sweep.grid.seed[0]
    return Cell(
        name="/".join(folders),
        config=settings,
        keeps_model=sweep.keep_all_models or (is_first_seed and settings.shots == most_shots),
    )


def _unset(kind: type | None = None) -> ConfigDict:
    """Returns all fields of a run without values, with their own types or all with one type."""
    return _placeholders(get_config(), kind)


def _placeholders(config: ConfigDict, kind: type | None) -> ConfigDict:
    fields = ConfigDict()
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            fields[name] = _placeholders(value, kind)
        elif name != "benchmark":
            fields[name] = placeholder(kind or config.get_type(name))
    return fields


def _given(fields: ConfigDict) -> dict[str, Any]:
    """Returns the fields that have a value, under dotted names."""
    return {n: value for n, value in flatten(fields.to_dict()).items() if value is not None}


def _update(settings: ConfigDict, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        try:
            settings.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise UserError(f"the sweep sets {name} to {value!r}: {error}") from error


def _slug(value: Any) -> str:
    """Returns a value in a form that fits into a folder's name."""
    text = str(value)
    kept = re.sub(r"[^\w.+-]+", "-", text)[:LONGEST_VALUE]
    return kept if kept == text else f"{kept}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
