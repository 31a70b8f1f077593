"""CoOp's layout: a `split_zhou_*.json` beside the images of a benchmark."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from fgvpl_jax.data.splits import Dataset, class_name, make_split
from fgvpl_jax.errors import UserError

# Names in the file, in the order of Dataset's fields.
SPLITS = ("train", "val", "test")

Entries = dict[str, list[tuple[str, int]]]


def load_coop(root: str, split_file: str, image_dir: str) -> Dataset:
    """A benchmark as CoOp's users have it.

    Args:
        root: The folder that holds the benchmarks' folders.
        split_file: Below root: {"train" | "val" | "test": [[path, label, class name], ...]}.
        image_dir: Below root; the folder that the paths start from.
    Raises:
        UserError: If a folder, the file or an image is missing, or the file contradicts itself.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"there is no folder {root}: set --config.data.root to where the data is")
    if not split_file:
        raise UserError("data.split_file is empty: name CoOp's split file, below data.root")
    file, images = base / split_file, base / image_dir
    for needed, kind in ((file, file.is_file()), (images, images.is_dir())):
        if not kind:
            raise UserError(
                f"{needed} is missing: --config.data.root={root} must hold {split_file} and the "
                f"images in {image_dir}"
            )
    class_names, entries = read_split_file(file)
    check_present(images, (key for split in entries.values() for key, _ in split), file)
    for name in ("train", "test"):
        if not entries[name]:
            raise UserError(f"{file} has no {name} image: it must hold train, val and test")
    train, validation, test = (make_split(images, entries[name]) for name in SPLITS)
    return Dataset(class_names, train, validation if len(validation) else None, test)


def read_split_file(file: Path) -> tuple[tuple[str, ...], Entries]:
    """Class names in label order, and each split's (path, label) pairs; opens no image.

    Raises:
        UserError: If the file is not of CoOp's form, a label has two names or none, a path
            leaves its folder or stands in it twice.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = {name: [_entry(raw) for raw in content[name]] for name in SPLITS}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{file} is not a CoOp split file ({error!r}): it must hold train, val and test, each "
            "a list of [path, label, class name]"
        ) from error
    names: dict[int, str] = {}
    seen: dict[str, str] = {}
    spellings: dict[str, str] = {}
    for split, rows in entries.items():
        for key, label, name in rows:
            if names.setdefault(label, name) != name:
                raise UserError(f"{file} calls label {label} both {names[label]!r} and {name!r}")
            # Two labels of one spelling are ImageNet's own.
            twin = spellings.setdefault(class_name(name), name)
            if twin != name:
                raise UserError(
                    f"{file} has the classes {twin!r} and {name!r}, which are one name in a "
                    "sentence: rename one"
                )
            path = PurePosixPath(key)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(f"{file} names {key!r}, which leaves the image folder")
            if key in seen:
                raise UserError(
                    f"{file} has {key!r} twice, in {seen[key]} and in {split}: an image may be "
                    "in one place only, or the test would not be honest; remove one"
                )
            seen[key] = split
    if sorted(names) != list(range(len(names))) or not names:
        raise UserError(f"{file} has labels {sorted(names)[:5]} …: they must count from 0 upwards")
    class_names = tuple(class_name(names[label]) for label in range(len(names)))
    return class_names, {s: [(key, label) for key, label, _ in r] for s, r in entries.items()}


def _entry(raw: Any) -> tuple[str, int, str]:
    key, label, name = raw
    if not (isinstance(key, str) and isinstance(name, str) and type(label) is int):
        raise ValueError(f"entry {raw}")
    return key, label, name


def check_present(folder: Path, keys: Iterable[str], named_by: Path) -> None:
    """Refuses data whose images are not all there; lists each folder once, opens nothing."""
    by_parent = defaultdict(list)
    for key in keys:
        path = PurePosixPath(key)
        by_parent[path.parent].append(path)
    missing = []
    for parent, paths in by_parent.items():
        place = folder / parent
        there = set(os.listdir(place)) if place.is_dir() else set()
        missing += [str(path) for path in paths if path.name not in there]
    if missing:
        raise UserError(
            f"{len(missing)} images that {named_by} names are not in {folder}, such as "
            f"{', '.join(sorted(missing)[:3])}: unpack all of the benchmark's archive there"
        )
