"""Finds the finished runs in folders."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fgvpl_jax.data import BENCHMARKS
from fgvpl_jax.displays.labels import benchmark_order, method_order, shots_order
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import read_json
from fgvpl_jax.methods import METHODS
from fgvpl_jax.reports.records import TEMPLATES, RunRecord
from fgvpl_jax.runs.results import RunResults
from fgvpl_jax.runs.settings import LOCATIONS, RESOURCES, flatten, plain
from fgvpl_jax.runs.workdir import Workdir

# Fields that have columns of their own, and fields that do not change what a run computes.
OWN_COLUMNS = ("benchmark", "method", "shots", "seed")
NO_DIFFERENCE = (
    *LOCATIONS,
    *RESOURCES,
    "eval_batch_size",
    "checkpoint_every_epochs",
)


def read_runs(
    places: Iterable[Path], defaults: Mapping[str, Any]
) -> tuple[list[RunRecord], list[RunRecord], list[str]]:
    """Reads all finished runs in some folders, in the order of the paper's tables.

    Args:
        places: Folders of runs, or folders that hold runs at any depth.
        defaults: Default settings, which tables need not name, by dotted name.
    Returns:
        The runs with a test split, those that have only a cross-validated estimate, and a line for
        each run that is left out. Runs that agree in all settings, few-shot images and accuracy
        count as one run.
    """
    found: dict[Any, tuple[RunRecord, Any]] = {}
    left_out = []
    for folder in sorted({folder for place in places for folder in _run_folders(place)}):
        workdir = Workdir(folder)
        try:
            results = RunResults.read(workdir)
            record = _record(folder, flatten(plain(workdir.stored_config())), results)
            accuracies = results.test_accuracy, results.cv_accuracy
            outcome = read_json(workdir.few_shot_file), accuracies
        except (OSError, UserError) as error:
            left_out.append(f"{folder}: cannot be read ({error})")
            continue
        fields = tuple(sorted((name, repr(value)) for name, value in record.settings.items()))
        sha256 = results.backbone.sha256
        # No mean is taken over runs without a test split, so each has its own row.
        own = repr(outcome) if results.test_accuracy is None else ""
        key = (record.benchmark, sha256, record.method, record.shots, record.seed, fields, own)
        first, first_outcome = found.setdefault(key, (record, outcome))
        if outcome != first_outcome:
            left_out.append(
                f"{folder}: has the settings of {first.folder}, but other few-shot images or "
                "another accuracy; report it separately"
            )
    tested: list[RunRecord] = []
    estimated: list[RunRecord] = []
    for record, _ in found.values():
        (estimated if record.results.test_accuracy is None else tested).append(record)
    records = _with_variants(_with_distinct_backbones(tested), defaults)
    records.sort(
        key=lambda r: (
            benchmark_order(r.benchmark),
            r.backbone,
            method_order(r.method),
            len(r.variant),  # the default first
            str(r.variant),
            shots_order(r.shots),
            r.seed,
        )
    )
    return records, _with_distinct_backbones(estimated), left_out


def _run_folders(place: Path) -> Iterable[Path]:
    for folder, subfolders, files in os.walk(place):
        if "results.json" in files:
            subfolders.clear()  # a run's folder contains no other run
            yield Path(folder).absolute()


def _record(folder: Path, config: Mapping[str, Any], results: RunResults) -> RunRecord:
    benchmark = config["benchmark"]
    if config["data.source"] == "folder":
        benchmark = Path(config["data.root"]).name or benchmark
        if benchmark in BENCHMARKS:  # the folder has a benchmark's name, but not its split
            benchmark += "_folder"
    hidden = {*OWN_COLUMNS, *NO_DIFFERENCE}
    return RunRecord(
        folder=folder,
        benchmark=benchmark,
        backbone=Path(config["clip"]).name,
        method=config["method"],
        shots=config["shots"],
        seed=config["seed"],
        settings={n: _hashable(value) for n, value in config.items() if n not in hidden},
        results=results,
    )


def _with_distinct_backbones(records: Sequence[RunRecord]) -> list[RunRecord]:
    hashes = defaultdict(set)
    for record in records:
        hashes[record.backbone].add(record.results.backbone.sha256)
    return [
        record
        if len(hashes[record.backbone]) == 1
        else replace(record, backbone=f"{record.backbone}@{record.results.backbone.sha256[:8]}")
        for record in records
    ]


def _with_variants(records: Sequence[RunRecord], defaults: Mapping[str, Any]) -> list[RunRecord]:
    """Fills in the varied settings: those that differ between runs of one method and shots.

    A setting that differs only between shots, as epochs may, makes no row of its own. One that
    differs between seeds does, because a mean over seeds is a mean over equal settings.
    """
    groups = defaultdict(list)
    for record in records:
        groups[record.benchmark, record.backbone, record.method, record.shots].append(record)
    varied = defaultdict(set)
    for (benchmark, backbone, method, _), group in groups.items():
        for name in {name for record in group for name in record.settings}:
            if len({repr(record.settings.get(name)) for record in group}) > 1:
                varied[benchmark, backbone, method].add(name)
    found = []
    for record in records:
        own = varied[record.benchmark, record.backbone, record.method]
        expected = {n: _hashable(v) for n, v in {**defaults, **_own_defaults(record)}.items()}
        if "epochs" not in own:
            expected.pop("epochs", None)  # the notes below a table name them
        other = [
            (name, value)
            for name, value in sorted(record.settings.items())
            if name not in expected or value not in (None, expected[name])
        ]
        found.append(
            replace(
                record,
                variant=tuple((name, value) for name, value in other if name in own),
                shared=tuple(
                    (name, value) for name, value in other if name in expected and name not in own
                ),
            )
        )
    return found


def _hashable(value: Any) -> Any:
    """Returns a setting's value with lists turned into tuples, which JSON cannot store."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _own_defaults(record: RunRecord) -> Mapping[str, Any]:
    """Returns the method's recipe, and a known benchmark's templates and split."""
    own: dict[str, Any] = {}
    if record.method in METHODS:
        num_images = record.results.counts.train
        recipe = METHODS[record.method].recipe(record.benchmark, record.shots or 1, num_images)
        own |= recipe._asdict()
    if record.benchmark in BENCHMARKS:
        benchmark = BENCHMARKS[record.benchmark]
        own |= {TEMPLATES: benchmark.templates, "data.split_file": benchmark.split_file}
    return own
