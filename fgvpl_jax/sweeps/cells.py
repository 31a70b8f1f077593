"""From a sweep's config to the runs that it is made of."""

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

SLOWEST_AXES = ("seed", "benchmark", "clip", "method")  # a whole table of one seed comes first
IN_FOLDERS = (*SLOWEST_AXES, "shots")  # what every cell's path says; of the rest, what is chosen
LONGEST_VALUE = 40


@dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
        name: `benchmark/backbone/method/shots=…,seed=…`: its folder below the sweep's `cells`.
        config: Its settings, complete.
        keeps_model: Whether its checkpoint and cache stay when it is finished.
    """

    name: str
    config: ConfigDict
    keeps_model: bool


def sweep_config(methods: tuple[str, ...]) -> ConfigDict:
    """A sweep with every field open; what stays None is as `configs/<benchmark>.py` has it.

    Args:
        methods: What the grid begins with; `by_method` has a place for each.
    """
    config = ConfigDict()
    config.benchmarks = ()  # names of files in configs/
    config.run = _unset()  # settings of every cell
    config.by_method = ConfigDict({name: _unset() for name in methods})
    config.grid = _unset(tuple)  # values, every combination of which is a cell
    config.grid.method = methods
    # A trained ViT-B/16 takes 100 MB. Of every method and setting one is kept, which the report
    # draws pictures with: the first seed's, at the most shots.
    config.keep_all_models = False
    return config


def cells_of(config: ConfigDict, config_named: ConfigNamed) -> list[Cell]:
    """Every run of a sweep, in the order in which they shall be done.

    Args:
        config: From `sweep_config`. A value in `grid` goes before one in `by_method`, that before
            one in `run`, and that before the benchmark's own.
        config_named: Gives the config of a name in `benchmarks`.
    Raises:
        UserError: If there is nothing to run, or a run would have settings that none can have.
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
                f"the backbones {other!r} and {cell.config.clip!r} would share a folder, as both "
                "have one name: rename one"
            )
    return list(cells.values())


def _cell(own: ConfigDict, chosen: Mapping[str, Any], sweep: ConfigDict) -> Cell:
    """The cell at one point of the grid; `own` are the benchmark's settings."""
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
    """All fields of a run, without values; of their own types, or all of one."""
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
    """The fields that have a value, under names with dots."""
    return {n: value for n, value in flatten(fields.to_dict()).items() if value is not None}


def _update(settings: ConfigDict, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        try:
            settings.update_from_flattened_dict({name: value})
        except TypeError as error:
            raise UserError(f"the sweep sets {name} to {value!r}: {error}") from error


def _slug(value: Any) -> str:
    """A value as part of a folder's name."""
    text = str(value)
    kept = re.sub(r"[^\w.+-]+", "-", text)[:LONGEST_VALUE]
    return kept if kept == text else f"{kept}~{hashlib.sha256(text.encode()).hexdigest()[:8]}"
