"""Checks that the data of a config is complete and sound, before anything is trained on it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from fgvpl_jax.data import BENCHMARKS, DataReport, Dataset, benchmark_named, check_dataset
from fgvpl_jax.data.entries import Skipped, skipped_lines
from fgvpl_jax.data.tfds_prepare import prepare_tfds
from fgvpl_jax.data.tfds_source import find_prepared
from fgvpl_jax.displays.contact_sheet import PER_CLASS, draw_contact_sheet, thumbnail
from fgvpl_jax.runs.check_labels import check_labels
from fgvpl_jax.runs.data_loading import load_dataset
from fgvpl_jax.runs.label_run import has_label_list
from fgvpl_jax.runs.workdir import Workdir

REPORT, SHEET = "data.json", "contact_sheet.jpg"


def check_data(config: ConfigDict, workdir: Workdir) -> tuple[list[str], list[str]]:
    """Checks the data that a config names; needs no CLIP checkpoint.

    A TFDS data set that is not prepared yet is prepared first.

    Args:
        config: Config of a run; only its `benchmark` and `data` are read.
        workdir: Folder for `data.json`, which holds all findings, and `contact_sheet.jpg`, which is
            not drawn for a list with several labels a photo.
    Returns:
        Lines that describe the data, and lines that say what is wrong with it.
    Raises:
        UserError: If the data cannot be found or prepared, or is inconsistent.
    """
    if has_label_list(config):
        return check_labels(config, workdir, REPORT)
    if config.data.source == "tfds":
        prepare_if_missing(config.benchmark, config.data.root)
    dataset = load_dataset(config)
    benchmark = BENCHMARKS.get(config.benchmark)
    published = None if benchmark is None else benchmark.counts._asdict()
    report = check_dataset(dataset, published)
    rows = [
        {"class": name, **{split: int(n[label]) for split, n in report.counts.items()}}
        for label, name in enumerate(dataset.class_names)
    ]
    lost = {reason: paths for reason, paths in dataset.skipped.items() if reason.is_problem}
    problems = report.problems + [f"skipped {line}" for line in skipped_lines(lost)]
    workdir.write(
        workdir.path / REPORT,
        {
            "benchmark": config.benchmark,
            "split_protocol": dataset.split_protocol,
            "counts": rows,
            "published": published,
            "unreadable": [line for found in report.unreadable.values() for line in found.values()],
            "duplicates": report.duplicates,
            "repeats": report.repeats,
            "near_copies": report.near_copies,
            "problems": problems,
            "notes": report.notes,
            "skipped": {reason.value: paths for reason, paths in dataset.skipped.items()},
        },
    )
    draw_contact_sheet(samples(dataset, report)).save(workdir.path / SHEET, quality=90)
    lines = count_lines(config.benchmark, dataset, report, published)
    lines.append(f"splits: {dataset.split_protocol}")
    lines += survey_lines(dataset.skipped)
    lines.append(f"{PER_CLASS} photos of each class are in {workdir.path / SHEET}")
    lines.append(f"all findings are in {workdir.path / REPORT}")
    lines += [f"note: {note}" for note in report.notes]
    if not problems:
        alone = "" if report.duplicates else ", and none is in two splits"
        counted = " of these" if dataset.skipped else ""
        lines.append(f"nothing is wrong: every image{counted} can be read{alone}")
    return lines, problems


def prepare_if_missing(name: str, root: str) -> None:
    """Has TFDS prepare a benchmark if no version of it is prepared below `root`."""
    examples = benchmark_named(name).tfds
    if examples is not None and find_prepared(Path(root).expanduser(), examples.name) is None:
        print(f"{name} is not prepared in {root} yet: preparing it", flush=True)
        prepare_tfds(name, root)


def survey_lines(skipped: Skipped) -> list[str]:
    """Returns lines that say which entries of the user's folder were skipped, and why."""
    if not skipped:
        return []
    count = sum(len(paths) for paths in skipped.values())
    lines = [f"skipped: {count:,} entries of the folder"]
    return lines + [f"  {line}" for line in skipped_lines(skipped)]


def samples(dataset: Dataset, report: DataReport) -> list[tuple[str, list[Image.Image]]]:
    """Returns thumbnails of training photos, spread evenly over the readable ones of each class."""
    train, unreadable = dataset.train, report.unreadable["train"]
    classes = []
    for label, name in enumerate(dataset.class_names):
        members = [i for i in np.flatnonzero(train.labels == label) if int(i) not in unreadable]
        spread = np.linspace(0, len(members) - 1, min(PER_CLASS, len(members))).round().astype(int)
        classes.append((name, [thumbnail(train.image(int(members[place]))) for place in spread]))
    return classes


def count_lines(
    benchmark: str, dataset: Dataset, report: DataReport, published: Mapping[str, int] | None
) -> list[str]:
    """Returns a table of images by class and split, with sums and, if known, published counts."""
    width = max(len(name) for name in (*dataset.class_names, "published"))

    def row(name: str, numbers: Mapping[str, int]) -> str:
        return f"{name:{width}}" + "".join(f"{numbers[split]:12,}" for split in report.counts)

    heading = "".join(f"{split:>12}" for split in report.counts)
    lines = [f"{benchmark}: {len(dataset.class_names)} classes", f"{'':{width}}{heading}"]
    for label, name in enumerate(dataset.class_names):
        lines.append(row(name, {split: int(n[label]) for split, n in report.counts.items()}))
    lines.append(row("all", {split: int(n.sum()) for split, n in report.counts.items()}))
    if published is not None:
        lines.append(row("published", published))
    return lines
