"""CoOp's layout: images next to a `split_zhou_*.json` or the benchmark's own lists."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from fgvpl_jax.data.benchmarks import Benchmark
from fgvpl_jax.data.official_lists import check_class_names, check_labels
from fgvpl_jax.data.split_protocol import SPLITS, Parts, refuse_leaks
from fgvpl_jax.data.splits import (
    Dataset,
    check_present,
    class_name,
    key_below,
    make_split,
    one_spelling,
    same_name,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import parse_json


def load_coop(
    root: str, split_file: str, image_dir: str, benchmark: Benchmark | None = None
) -> Dataset:
    """Loads a benchmark in CoOp's layout.

    If the split file exists, the splits are exactly those in it. Otherwise, if the benchmark is in
    the table, they are made from its own lists by the benchmark's protocol. Links are followed
    wherever they lead, because CoOp's users link their data into place.

    Args:
        root: Folder that holds the benchmarks' folders.
        split_file: Path of the split file, relative to root. It holds
            {"train" | "val" | "test": [[path, label, class name], ...]}.
        image_dir: Folder that the paths start from, relative to root.
        benchmark: Entry of the benchmark in the table, if it has one. The class names must be
            those of the entry.
    Raises:
        UserError: If a folder, a list or an image is missing, or the split file contradicts
            itself or the table.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"there is no folder {root}: set data.root to the folder that holds the benchmarks"
        )
    file, images = base / split_file, base / image_dir
    if not images.is_dir():
        raise UserError(
            f"{images} is missing: data.root is {root}, which must hold the images in {image_dir}"
        )
    if file.is_file():
        class_names, parts = read_split_file(file)
        if benchmark is not None:
            check_class_names(class_names, benchmark.class_names, file)
        check_folders(parts, class_names, file, benchmark)
        named_by, described = file, f"split file {split_file}"
    elif benchmark is None or split_file not in ("", benchmark.split_file):
        raise UserError(
            f"{file} is missing: set data.split_file to the path of a split file below data.root"
        )
    else:
        named_by = base / PurePosixPath(image_dir).parts[0]
        class_names = benchmark.class_names
        listed = benchmark.read_lists(named_by, images, benchmark)
        parts = {
            split: [(key_below(key, named_by), label) for key, label in rows]
            for split, rows in listed.items()
        }
        check_labels(parts, len(class_names), named_by)
        parts, described = benchmark.protocol.split(parts, str(named_by))
    if len(class_names) < 2:
        raise UserError(f"{named_by} has {len(class_names)} class: at least two are needed")
    for name in ("train", "test"):
        if not parts[name]:
            raise UserError(f"{named_by} names no {name} image: at least one is needed")
    check_present(images, (key for split in parts.values() for key, _ in split), named_by)
    train, validation, test = (make_split(images, parts[name]) for name in SPLITS)
    return Dataset(class_names, train, validation if len(validation) else None, test, described)


def read_split_file(file: Path) -> tuple[tuple[str, ...], Parts]:
    """Reads class names in label order and each split's (path, label) pairs; opens no image.

    Raises:
        UserError: If the file does not have CoOp's format, a label has two names or no name, or
            a path leaves its folder or is in two splits.
    """
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
        entries = {name: [_entry(raw) for raw in content[name]] for name in SPLITS}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is not a CoOp split file ({error!r}): it must hold train, val and test, each "
            "a list of [path, label, class name]"
        ) from error
    names: dict[int, str] = {}
    spellings: dict[str, str] = {}
    for _, label, name in (row for rows in entries.values() for row in rows):
        if names.setdefault(label, name) != name:
            raise UserError(f"{file} calls label {label} both {names[label]!r} and {name!r}")
        one_spelling(name, spellings, file)  # two labels may share one: ImageNet's do
    if sorted(names) != list(range(len(names))) or not names:
        raise UserError(f"{file} has labels {sorted(names)[:5]} …: they must count from 0 upwards")
    parts = {
        split: [(key_below(key, file), label) for key, label, _ in rows]
        for split, rows in entries.items()
    }
    refuse_leaks(parts, str(file))
    class_names = tuple(class_name(names[label]) for label in range(len(names)))
    return class_names, parts


def check_folders(
    parts: Parts, class_names: Sequence[str], file: Path, benchmark: Benchmark | None
) -> None:
    """Refuses a split file that assigns photos in one class's folder to another class.

    Folders whose names are not those of a class, such as `cars_train`, are not checked.

    Raises:
        UserError: If there is such a photo; the message names the first one.
    """
    labels = {same_name(name): label for label, name in enumerate(class_names)}

    @cache  # one entry per folder of the split file, and dropped when this call returns
    def label_of(folder: str) -> int | None:
        if benchmark is not None:
            return benchmark.find_label(folder)
        return labels.get(same_name(PurePosixPath(folder).name.replace("_", " ")))

    for key, label in (pair for images in parts.values() for pair in images):
        theirs = label_of(str(PurePosixPath(key).parent))
        if theirs is not None and class_names[theirs] != class_names[label]:
            raise UserError(
                f"{file} calls {key} {class_names[label]!r}, but its folder is that of class "
                f"{class_names[theirs]!r}: restore the split file, or the folders"
            )


def _entry(raw: Any) -> tuple[str, int, str]:
    key, label, name = raw
    if not (isinstance(key, str) and isinstance(name, str) and type(label) is int):
        raise ValueError(f"entry {raw}")
    return key, label, name
