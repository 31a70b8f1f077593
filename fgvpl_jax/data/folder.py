"""Your own photos: a folder of class folders, or one such folder per split."""

import os
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

import numpy as np
from absl import logging

from fgvpl_jax.data.entries import (
    FOREIGN_SUFFIXES,
    IMAGE_SUFFIXES,
    Entries,
    listed,
    reason_to_skip_file,
    refuse_misread_name,
    skipped_lines,
    warn_of_skipped,
)
from fgvpl_jax.data.split_names import split_role, split_roles
from fgvpl_jax.data.splits import Dataset, Split, make_split, one_spelling, same_name
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user

OTHER = "other"  # folder of photos that belong to no class
MOST_SHOWN = 300  # characters of a path in a message


def load_folder(root: str) -> Dataset:
    """Loads photos that are sorted into folders named after their classes.

    The layout is either `root/<class>/…/photo.jpg`, which has neither a validation nor a test
    split, or `root/train/<class>/…` with optional folders `val` and `test` next to `train`. Other
    usual names of splits, such as `training_set`, are known too. Photos in `root/other` and
    `root/train/other` belong to no class. Files count as photos by their content; everything else
    is listed in the data set's `skipped`.

    Args:
        root: Folder that holds the class folders or the split folders.
    Raises:
        UserError: If there is no such folder, a folder cannot be listed, a class has no image, two
            folders have the same class name, a split has a class that `train` lacks, `train` is
            missing or is next to folders other than splits, or each class holds its own splits.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"there is no folder {root}: set data.root to the folder that holds your photos"
        )
    entries = Entries(base)
    splits = split_folders(base, entries)
    if not splits:
        classes = at_least_two(class_folders(base, entries), base)
        check_equal_layouts(list(classes.values()), entries)
        photos = read_classes(base, list(classes.values()), entries)
        described = "none, all photos are for training"
        other = read_other(base, [base], entries)
        return Dataset(
            tuple(classes), photos, None, None, described, skipped=entries.skipped, other=other
        )
    entries.skip_all_but(base, [*splits.values(), *other_folders(base, entries)])
    places = {role: innermost(place, role, entries) for role, place in splits.items()}
    train_place = places["train"]
    classes = at_least_two(class_folders(train_place, entries), train_place)
    known = {same_name(name): name for name in classes}
    loaded: dict[str, Split] = {}
    for role, place in places.items():
        for folder in other_folders(place, entries) if role != "train" else ():
            raise UserError(
                f"{folder} is for photos of no class, and {place} has none: move them to "
                f"{base / OTHER}, or rename the folder if it is a class"
            )
        found = classes if role == "train" else class_folders(place, entries)
        unknown = [name for name in found if same_name(name) not in known]
        if unknown:
            raise UserError(f"{place} has classes that {train_place} lacks: {unknown}")
        folders = {known[same_name(name)]: folder for name, folder in found.items()}
        if not folders:
            raise UserError(
                f"{place} has no class folder: fill it like {train_place}, or remove it"
            )
        loaded[role] = read_classes(base, [folders.get(name) for name in classes], entries)
    other = read_other(base, [base, train_place], entries)
    return Dataset(
        tuple(classes),
        loaded["train"],
        loaded.get("validation"),
        loaded.get("test"),
        "the folders' own",
        skipped=entries.skipped,
        other=other,
    )


def split_folders(base: Path, entries: Entries) -> dict[str, Path]:
    """Returns the folder of each split; empty if the folders are classes.

    Raises:
        UserError: If the folders are splits, but two of them are the same split, `train` is
            missing, or there is a folder that is not a split.
    """
    children = [child for child in entries.folders(base) if not is_other(child)]
    known = split_roles([child.name for child in children])
    roles = {child: known[child.name] for child in children if child.name in known}
    named = list(roles)
    others = [child.name for child in children if child not in roles]
    train = [child for child, role in roles.items() if role == "train"]
    # A class may be called "train". But the photos of a split are in class folders, and the other
    # splits next to `train` distinguish it from a class with nested folders.
    are_classes = not any(
        entries.folders(folder) and not has_loose_photos(folder) for folder in train or named
    )
    if named == train:
        are_classes = are_classes or len(common_folders(children, entries)) < 2
    if not named or (others and are_classes):
        return {}
    names = ", ".join(child.name for child in named)
    if not train:
        raise UserError(f"{base} has {names}, but no folder train: rename the training folder so")
    if others:
        raise UserError(
            f"{base} has {others} next to {names}: move classes into {train[0].name}, rename "
            "splits train, val and test, and move other folders elsewhere"
        )
    splits: dict[str, Path] = {}
    for child, role in roles.items():
        if role in splits:
            raise UserError(f"{base} has both {splits[role].name} and {child.name}: keep one")
        splits[role] = child
    return splits


def innermost(place: Path, role: str, entries: Entries) -> Path:
    """Returns the folder of a split that holds its classes: some archives nest `train/train/`."""
    inner = entries.folders(place)
    if len(inner) == 1 and split_role(inner[0].name) == role and not has_loose_photos(place):
        entries.skip_all_but(place, inner)
        return innermost(inner[0], role, entries)
    return place


def common_folders(folders: Sequence[Path], entries: Entries) -> list[str]:
    """Returns the names of folders that all of these folders hold; empty if any holds photos."""
    if len(folders) < 2 or any(has_loose_photos(folder) for folder in folders):
        return []
    names = [{same_name(inner.name) for inner in entries.folders(folder)} for folder in folders]
    return sorted(set.intersection(*names))


def check_equal_layouts(folders: Sequence[Path], entries: Entries) -> None:
    """Logs a warning if the class folders look like splits whose names are not known.

    Raises:
        UserError: If each class folder holds its own splits.
    """
    common = common_folders(folders, entries)
    if len(common) < 2:
        return
    names, held = ", ".join(folder.name for folder in folders[:5]), ", ".join(common[:5])
    if len(set(split_roles(common).values())) > 1:
        raise UserError(
            f"each of the folders {names} holds the folders {held}: move the photos of each split "
            f"and class into a folder such as train/{folders[0].name}, because splits come first"
        )
    logging.warning(
        "each of the folders %s holds the folders %s: if %s are splits rather than classes, rename "
        "them train, val and test",
        names,
        held,
        names,
    )


def has_loose_photos(place: Path) -> bool:
    """Returns whether photos are directly in a folder, rather than in folders below it."""
    return any(
        not child.is_dir()
        and (
            child.suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES
            or reason_to_skip_file(child) is None
        )
        for child in listed(place)
        if not child.name.startswith(".")
    )


def class_folders(place: Path, entries: Entries) -> dict[str, Path]:
    """Maps class names to folders, in the order of the folders' names."""
    folders = entries.folders(place)
    entries.skip_all_but(place, folders)
    folders = [folder for folder in folders if not is_other(folder)]
    spellings: dict[str, str] = {}
    classes = {}
    for folder in folders:
        refuse_misread_name(folder.name, place)
        classes[one_spelling(folder.name, spellings, place)] = folder
    return classes


def is_other(folder: Path) -> bool:
    """Returns whether a folder is for photos of no class, by its name."""
    return same_name(folder.name) == OTHER


def other_folders(place: Path, entries: Entries) -> list[Path]:
    """Returns the folder of photos of no class in a folder, if there is one."""
    return [folder for folder in entries.folders(place) if is_other(folder)]


def read_other(base: Path, places: Sequence[Path], entries: Entries) -> Split | None:
    """Lists the photos of no class that some folders hold; None without any."""
    found = [folder for place in places for folder in other_folders(place, entries)]
    if not found:
        return None
    photos = read_classes(base, found, entries)
    return replace(photos, labels=np.zeros_like(photos.labels))


def at_least_two(classes: dict[str, Path], place: Path) -> dict[str, Path]:
    """Returns the classes unchanged; refuses fewer than two."""
    if len(classes) < 2:
        has_other = any(is_other(child) for child in place.iterdir())
        is_reserved = f"; the folder {OTHER} is no class, rename it to make it one" * has_other
        found = f"one class, {next(iter(classes))}" if classes else "no folder of a class"
        inside = [folder for folder in classes.values() if visible_folders(folder)]
        only = "".join(f", or set data.root to {folder}" for folder in inside)
        whole = place.absolute()
        if not classes and has_loose_photos(place) and not split_roles([whole.name]):
            only = f", or set data.root to {whole.parent} if {whole.name} is a class"
        raise UserError(
            f"{place} has {found}: put the photos of each class into a folder named after the "
            f"class, with at least two classes{only}{is_reserved}"
        )
    return classes


def read_classes(base: Path, folders: Sequence[Path | None], entries: Entries) -> Split:
    """Lists all photos below each class's folder; None stands for a class without a folder."""
    images = []
    for label, folder in enumerate(folders):
        if folder is None:
            continue
        files = entries.photos(folder)
        if not files:
            below = Entries(folder)
            below.photos(folder)
            held = "; ".join(skipped_lines(below.skipped)) or "it is empty"
            raise UserError(
                f"{folder} holds no image that can be read ({held}): add some, convert them to "
                "JPEG, or remove the folder"
            )
        keys = [path.relative_to(base).as_posix() for path in files]
        for key in keys:
            refuse_misread_name(key, base)
        images += [(key, label) for key in keys]
    return make_split(base, images)


def is_visible(name: str) -> bool:
    """Returns whether a name in a benchmark's archive is neither hidden nor left by an archiver."""
    return not name.startswith((".", "__"))


def visible_folders(place: Path) -> list[Path]:
    """Returns the visible folders in a benchmark's folder, in name order."""
    return sorted(child for child in place.iterdir() if child.is_dir() and is_visible(child.name))


def image_files(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Returns the visible files with these suffixes at any depth, in path order.

    For benchmarks, whose files are known: names alone decide.

    Links to folders are followed, but each folder is visited only once, because a link may point
    to a folder that contains it.
    """
    found: list[Path] = []
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(is_visible, folders))
        found += [Path(place, name) for name in filter(is_visible, files)]
    return sorted(path for path in found if path.suffix.lower() in suffixes and path.is_file())


def photos_at(place: str | Path) -> list[Path]:
    """Returns the file itself if `place` is a file, or all photos in it if it is a folder.

    Logs a warning that names what a folder holds in addition to photos.

    Raises:
        UserError: If the file or folder does not exist, or the folder holds no image.
    """
    path = expand_user(place)
    if not os.path.exists(path):  # pathlib raises an error for a name that is too long
        raise UserError(f"there is no file or folder {str(place)[:MOST_SHOWN]}")
    if not path.is_dir():
        return [path]
    entries = Entries(path)
    found = entries.photos(path)
    if not found:
        held = "; ".join(skipped_lines(entries.skipped)) or "it is empty"
        raise UserError(f"the folder {place} holds no image ({held})")
    warn_of_skipped(entries.skipped, place)
    return found
