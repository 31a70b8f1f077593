"""Your own photos: a folder of class folders, or one such folder per split."""

import os
from collections.abc import Sequence, Set
from pathlib import Path

from absl import logging

from fgvpl_jax.data.splits import Dataset, Split, make_split, one_spelling, same_name
from fgvpl_jax.errors import UserError

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
IMAGE_SUFFIXES |= {".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Photos that Pillow does not decode; skipping them silently would surprise users.
FOREIGN_SUFFIXES = {".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef"}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def load_folder(root: str) -> Dataset:
    """Loads photos that are sorted into folders named after their classes.

    The layout is either `root/<class>/…/photo.jpg`, which has neither a validation nor a test
    split, or `root/train/<class>/…` with optional folders `val` and `test` next to `train`, in
    upper or lower case.

    Args:
        root: Folder that holds the class folders or the split folders.
    Raises:
        UserError: If there is no such folder, a class has no image, two folders have the same
            class name, a split has a class that `train` lacks, or `train` is missing or is next
            to folders other than splits.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(
            f"there is no folder {root}: set data.root to the folder that holds your photos"
        )
    warn_of_loose_photos(base)
    splits = split_folders(base)
    if not splits:
        classes = at_least_two(class_folders(base), base)
        photos = read_classes(base, base, list(classes.values()))
        return Dataset(tuple(classes), photos, None, None, "none, all photos are for training")
    classes = at_least_two(class_folders(splits["train"]), splits["train"])
    known = {same_name(name): name for name in classes}
    loaded: dict[str, Split] = {}
    for role, place in splits.items():
        found = class_folders(place)
        unknown = [name for name in found if same_name(name) not in known]
        if unknown:
            raise UserError(f"{place} has classes that {splits['train']} lacks: {unknown}")
        warn_of_loose_photos(place)
        folders = {known[same_name(name)]: folder for name, folder in found.items()}
        if not folders:
            raise UserError(
                f"{place} has no class folder: fill it like {splits['train']}, or remove it"
            )
        loaded[role] = read_classes(base, place, [folders.get(name) for name in classes])
    return Dataset(
        tuple(classes),
        loaded["train"],
        loaded.get("validation"),
        loaded.get("test"),
        "the folders' own",
    )


def split_folders(base: Path) -> dict[str, Path]:
    """Returns the folder of each split; empty if the folders are classes.

    Raises:
        UserError: If the folders are splits, but two of them are the same split, `train` is
            missing, or there is a folder that is not a split.
    """
    children = visible_folders(base)
    named = [child for child in children if child.name.casefold() in SPLIT_FOLDERS]
    others = [child.name for child in children if child not in named]
    train = [child for child in named if SPLIT_FOLDERS[child.name.casefold()] == "train"]
    # A class may be called "train". But the photos of a split are in class folders, and the other
    # splits next to `train` distinguish it from a class with nested folders.
    are_classes = named == train or not any(
        visible_folders(folder) and not loose_photos(folder) for folder in train or named
    )
    if not named or (others and are_classes):
        return {}
    names = ", ".join(child.name for child in named)
    if not train:
        raise UserError(f"{base} has {names}, but no folder train: rename the training folder so")
    if others:
        raise UserError(
            f"{base} has {others} next to {names}: move classes into {train[0].name}, and other "
            "folders elsewhere"
        )
    splits: dict[str, Path] = {}
    for child in named:
        role = SPLIT_FOLDERS[child.name.casefold()]
        if role in splits:
            raise UserError(f"{base} has both {splits[role].name} and {child.name}: keep one")
        splits[role] = child
    return splits


def is_visible(name: str) -> bool:
    """Returns whether a name is neither hidden nor left behind by an archiver."""
    return not name.startswith((".", "__"))


def visible_folders(place: Path) -> list[Path]:
    """Returns the visible folders in a folder, in name order."""
    return sorted(child for child in place.iterdir() if child.is_dir() and is_visible(child.name))


def loose_photos(place: Path) -> list[Path]:
    """Returns the photos directly in a folder, including formats that cannot be read."""
    return [
        child
        for child in place.iterdir()
        if child.suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES
        and is_visible(child.name)
        and child.is_file()
    ]


def warn_of_loose_photos(place: Path) -> None:
    """Logs a warning if photos are in no class folder."""
    count = len(loose_photos(place))
    if count:
        logging.warning(
            "%d photos directly in %s are skipped: move them into the folders of their classes",
            count,
            place,
        )


def class_folders(place: Path) -> dict[str, Path]:
    """Maps class names to folders, in the order of the folders' names."""
    spellings: dict[str, str] = {}
    return {
        one_spelling(folder.name, spellings, place): folder for folder in visible_folders(place)
    }


def at_least_two(classes: dict[str, Path], place: Path) -> dict[str, Path]:
    """Returns the classes unchanged; refuses fewer than two."""
    if len(classes) < 2:
        raise UserError(
            f"{place} has {len(classes)} class(es): put the photos of each class into a folder "
            "named after the class, with at least two classes"
        )
    return classes


def read_classes(base: Path, place: Path, folders: Sequence[Path | None]) -> Split:
    """Lists all images below each class's folder; None stands for a class without a folder."""
    images = []
    foreign = 0
    for label, folder in enumerate(folders):
        if folder is None:
            continue
        photos = image_files(folder, IMAGE_SUFFIXES | FOREIGN_SUFFIXES)
        files = [photo for photo in photos if photo.suffix.lower() in IMAGE_SUFFIXES]
        unread = [photo for photo in photos if photo.suffix.lower() in FOREIGN_SUFFIXES]
        if unread and not files:
            raise UserError(
                f"{folder} holds {len(unread)} photos, such as {unread[0].name}, but no readable "
                "one: convert them to JPEG"
            )
        if not files:
            raise UserError(
                f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): add some, or "
                "remove the folder"
            )
        foreign += len(unread)
        images += [(path.relative_to(base).as_posix(), label) for path in files]
    if foreign:
        logging.warning(
            "%d photos below %s are skipped (%s cannot be read): convert them to JPEG",
            foreign,
            place,
            ", ".join(sorted(FOREIGN_SUFFIXES)),
        )
    return make_split(base, images)


def image_files(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Returns the visible files with these suffixes at any depth, in path order.

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
    """Returns the file itself if `place` is a file, or all images in it if it is a folder.

    Raises:
        UserError: If the file or folder does not exist, or the folder holds no image.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {place}")
    found = image_files(path) if path.is_dir() else [path]
    if not found:
        raise UserError(f"the folder {place} holds no image")
    return found
