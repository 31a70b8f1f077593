"""Training from Python, in one call."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fgvpl_jax.data import BENCHMARKS
from fgvpl_jax.errors import UserError
from fgvpl_jax.inference.classifier import Classifier
from fgvpl_jax.methods import AUTO
from fgvpl_jax.runs.default_config import benchmark_config, folder_config
from fgvpl_jax.runs.experiment import train_and_evaluate
from fgvpl_jax.runs.settings import flatten
from fgvpl_jax.runs.summary import more_photos_lines
from fgvpl_jax.runs.workdir import Workdir


def fit(data: str | Path, /, *, workdir: str | Path | None = None, **settings: Any) -> Classifier:
    """Trains on photos and evaluates the result: `fit("~/photos").predict("new.jpg")`.

    Args:
        data: A folder of class folders, a folder with train/val/test folders, or a .csv or .jsonl
            list; or a benchmark's name, such as "eurosat" (a folder with that name is
            "./eurosat").
        workdir: Folder that keeps the run; None makes a new temporary folder that only the user
            can read.
        **settings: Fields of the config, such as `clip`, `shots`, `seed`, `epochs` or
            `data={"templates": ("a photo of a {}.",)}`. `data={"root": …, "source": …}` sets where
            a benchmark is stored. For a benchmark, `shots` defaults to 16, `attention_map` to
            "product" and `selection_rule` to "accuracy"; for your own photos, to None (all photos),
            "border_contrast" and "likelihood". `method` defaults to "auto" for your own photos, and
            for a benchmark if `minutes` are given, otherwise to "fg_vpl".
    Returns:
        The classifier; its `results` hold the estimated accuracy.
    Raises:
        UserError: For every mistake in data or settings.
    """
    config = config_for(data, settings)
    with run_folder(workdir) as run:
        results = train_and_evaluate(config, run)
    for line in more_photos_lines(results):
        print(line)
    return Classifier(run)


@contextmanager
def run_folder(workdir: str | Path | None) -> Iterator[Workdir]:
    """Yields the folder of a run that is to be trained.

    Args:
        workdir: The folder; None makes a temporary one, and removes it if training fails before
            anything is in it.
    """
    run = Workdir(workdir or tempfile.mkdtemp(prefix="fgvpl_"))
    try:
        yield run
    except BaseException:
        if workdir is None:
            with suppress(OSError):  # the folder stays if it holds anything
                run.path.rmdir()
        raise


def config_for(data: str | Path, settings: dict[str, Any]) -> ConfigDict:
    """Builds the config of a run on this data, see `fit`.

    Raises:
        UserError: If a setting is unknown or has a wrong value.
    """
    if not isinstance(data, str | os.PathLike):
        raise UserError(
            f"data is of type {type(data).__name__}: give the path of a folder or list, or the "
            "name of a benchmark"
        )
    if "minutes" in settings:
        settings = {"method": AUTO, **settings}
    config = benchmark_config(str(data)) if data in BENCHMARKS else folder_config()
    fields = flatten(config.to_dict())
    unknown = flatten(settings).keys() - fields.keys()
    if unknown:
        raise UserError(f"unknown setting {sorted(unknown)}: choose from {sorted(fields)}")
    for name, value in flatten(settings).items():
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        try:
            config.update_from_flattened_dict({name: value})
        except TypeError as error:
            section, _, field = name.rpartition(".")
            kind = (config[section] if section else config).get_type(field).__name__
            raise UserError(
                f"the setting {name} is {value!r}: give a value of type {kind}"
            ) from error
    # ConfigDict accepts None for any field.
    optional = {"shots", *(name for name, value in fields.items() if value is None)}
    empty = [n for n, v in flatten(config.to_dict()).items() if v is None and n not in optional]
    if empty:
        raise UserError(f"the setting {empty[0]} is None: give it a value or leave it out")
    if data not in BENCHMARKS:
        config.data.source = "folder"  # whatever the settings say
        config.data.root = str(data)
    return config
