"""From folders to the finished runs in them."""

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

# What tells runs apart by itself, and what does not change what a run computes.
OWN_COLUMNS = ("benchmark", "method", "shots", "seed")
NO_DIFFERENCE = (
    *LOCATIONS,
    *RESOURCES,
    "eval_batch_size",
    "checkpoint_every_epochs",
)


def read_runs(
    places: Iterable[Path], defaults: Mapping[str, Any]
) -> tuple[list[RunRecord], list[str]]:
    """All finished runs in some folders, in the order of the paper's tables.

    Args:
        places: Runs' folders, or folders with such at any depth.
        defaults: Settings that need not be told in a table, under names with dots.
    Returns:
        The runs, and a line for each that is left out. One of several that agree in all settings,
        few-shot images and accuracy is enough: they are the same run.
    """
    found: dict[Any, tuple[RunRecord, Any]] = {}
    left_out = []
    for folder in sorted({folder for place in places for folder in _run_folders(place)}):
        workdir = Workdir(folder)
        try:
            results = RunResults.read(workdir)
            record = _record(folder, flatten(plain(workdir.stored_config())), results)
            came_to = read_json(workdir.few_shot_file), results.test_accuracy
        except (OSError, UserError) as error:
            left_out.append(f"{folder}: no run of this program ({error!r})")
            continue
        if results.test_accuracy is None:
            left_out.append(f"{folder}: has no test split, only a cross-validated estimate")
            continue
        fields = tuple(sorted((name, repr(value)) for name, value in record.settings.items()))
        sha256 = results.backbone.sha256
        key = (record.benchmark, sha256, record.method, record.shots, record.seed, fields)
        first, first_came_to = found.setdefault(key, (record, came_to))
        if came_to != first_came_to:
            left_out.append(
                f"{folder}: has the settings of {first.folder}, but other few-shot images or "
                "another accuracy; report it by itself"
            )
    records = [record for record, _ in found.values()]
    records = _with_variants(_with_distinct_backbones(records), defaults)
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
    return records, left_out


def _run_folders(place: Path) -> Iterable[Path]:
    for folder, subfolders, files in os.walk(place):
        if "results.json" in files:
            subfolders.clear()  # a run's folders hold no other run
            yield Path(folder).absolute()


def _record(folder: Path, config: Mapping[str, Any], results: RunResults) -> RunRecord:
    benchmark = config["benchmark"]
    if config["data.source"] == "folder":
        benchmark = Path(config["data.root"]).name or benchmark
        if benchmark in BENCHMARKS:  # its name, not its split
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
    """Finds the settings that were varied: in which runs of one method and shots differ.

    What differs only from shots to shots, as epochs may, makes no row of its own; what differs
    from seed to seed does: a mean over seeds is of equal settings.
    """
    beside = defaultdict(list)
    for record in records:
        beside[record.benchmark, record.backbone, record.method, record.shots].append(record)
    varied = defaultdict(set)
    for (benchmark, backbone, method, _), group in beside.items():
        for name in {name for record in group for name in record.settings}:
            if len({repr(record.settings.get(name)) for record in group}) > 1:
                varied[benchmark, backbone, method].add(name)
    found = []
    for record in records:
        own = varied[record.benchmark, record.backbone, record.method]
        expected = {n: _hashable(v) for n, v in {**defaults, **_own_defaults(record)}.items()}
        if "epochs" not in own:
            expected.pop("epochs", None)  # a table's notes tell them
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
    """A setting's value; a list, as JSON has tuples, as a tuple."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _own_defaults(record: RunRecord) -> Mapping[str, Any]:
    """The method's recipe, and a known benchmark's templates and split."""
    own: dict[str, Any] = {}
    if record.method in METHODS:
        num_images = record.results.counts.train
        recipe = METHODS[record.method].recipe(record.benchmark, record.shots or 1, num_images)
        own |= recipe._asdict()
    if record.benchmark in BENCHMARKS:
        benchmark = BENCHMARKS[record.benchmark]
        own |= {TEMPLATES: benchmark.templates, "data.split_file": benchmark.split_file}
    return own
