"""Checks the photos of a list with several labels each, before anything is trained on them."""

from ml_collections import ConfigDict

from fgvpl_jax.data import Dataset, check_dataset
from fgvpl_jax.data.label_list import load_label_list
from fgvpl_jax.runs.workdir import Workdir


def check_labels(config: ConfigDict, workdir: Workdir, file: str) -> tuple[list[str], list[str]]:
    """Checks a list with several labels a photo; needs no CLIP checkpoint.

    Args:
        config: Config of a run; only its `data.root` is read.
        workdir: Folder of the file that holds all findings.
        file: Name of this file.
    Returns:
        Lines that describe the photos, and lines that say what is wrong with them.
    Raises:
        UserError: If the list or a photo is missing, or a line makes no sense.
    """
    found = load_label_list(config.data.root)
    splits = {"train": found.train} | ({} if found.test is None else {"test": found.test})
    # A photo may have several labels, so the photos are checked as if they were of one class.
    photos = {name: split.photos for name, split in splits.items()}
    report = check_dataset(
        Dataset(("photos",), photos["train"], None, photos.get("test"), found.split_protocol)
    )
    truth = {name: split.truth for name, split in splits.items()}
    labels = {
        label: {split: int(truth[split][:, place].sum()) for split in splits}
        for place, label in enumerate(found.class_names)
    }
    without = {split: int((~rows.any(axis=1)).sum()) for split, rows in truth.items()}
    workdir.write(
        workdir.path / file,
        {
            "split_protocol": found.split_protocol,
            "counts": [{"label": label, **counts} for label, counts in labels.items()],
            "without_label": without,
            "unreadable": [line for lost in report.unreadable.values() for line in lost.values()],
            "duplicates": report.duplicates,
            "repeats": report.repeats,
            "near_copies": report.near_copies,
            "problems": report.problems,
            "notes": report.notes,
        },
    )
    sums = {split: len(rows) for split, rows in truth.items()}
    table = labels | {"no label": without, "all photos": sums}
    width = max(map(len, table))
    lines = [f"{len(labels)} labels", " " * width + "".join(f"{split:>12}" for split in splits)]
    lines += [
        f"{name:{width}}" + "".join(f"{number:12,}" for number in counts.values())
        for name, counts in table.items()
    ]
    lines += [f"splits: {found.split_protocol}", f"all findings are in {workdir.path / file}"]
    return lines + [f"note: {note}" for note in report.notes], report.problems
