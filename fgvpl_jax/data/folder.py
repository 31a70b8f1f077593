"""One's own photos: a folder of class folders, or one such folder per split."""

import os
from collections.abc import Sequence, Set
from pathlib import Path

from absl import logging

from fgvpl_jax.data.splits import Dataset, Split, make_split, one_spelling, same_name
from fgvpl_jax.errors import UserError

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm"}
IMAGE_SUFFIXES |= {".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Photos that Pillow does not decode; passing over them in silence would surprise.
FOREIGN_SUFFIXES = {".cr2", ".dng", ".heic", ".heif", ".jxl", ".nef"}
SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def load_folder(root: str) -> Dataset:
    """Photos sorted into folders named as their classes.

    Either `root/<class>/…/photo.jpg`, which has neither validation nor test split, or
    `root/train/<class>/…` with optional `val` and `test` beside `train`, in capitals or not.

    Args:
        root: The folder.
    Raises:
        UserError: If there is no such folder, a class has no image, two folders come to one class
            name, a split has a class that `train` lacks, or `train` is missing or in other
            company than splits.
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
                f"{place} has no class folder: fill it as {splits['train']}, or remove it"
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
    """Each split's folder; empty where the folders are classes.

    Raises:
        UserError: If the folders are splits, but two are one split, `train` is missing, or a
            folder is beside them that is none.
    """
    children = visible_folders(base)
    named = [child for child in children if child.name.casefold() in SPLIT_FOLDERS]
    others = [child.name for child in children if child not in named]
    train = [child for child in named if SPLIT_FOLDERS[child.name.casefold()] == "train"]
    # A class may be called "train"; but a split's photos are in class folders, and `train` is
    # told from a class of nested folders by the other splits beside it.
    are_classes = named == train or not any(
        visible_folders(folder) and not loose_photos(folder) for folder in train or named
    )
    if not named or (others and are_classes):
        return {}
    names = ", ".join(child.name for child in named)
    if not train:
        raise UserError(f"{base} has {names}, but no folder train: call that of training so")
    if others:
        raise UserError(
            f"{base} has {others} beside {names}: move what is no split out of it, and classes "
            f"into {train[0].name}"
        )
    splits: dict[str, Path] = {}
    for child in named:
        role = SPLIT_FOLDERS[child.name.casefold()]
        if role in splits:
            raise UserError(f"{base} has both {splits[role].name} and {child.name}: keep one")
        splits[role] = child
    return splits


def is_visible(name: str) -> bool:
    """Neither hidden nor what archivers leave behind."""
    return not name.startswith((".", "__"))


def visible_folders(place: Path) -> list[Path]:
    """Its folders in name order."""
    return sorted(child for child in place.iterdir() if child.is_dir() and is_visible(child.name))


def loose_photos(place: Path) -> list[Path]:
    """The photos directly in a folder, those that cannot be read among them."""
    return [
        child
        for child in place.iterdir()
        if child.suffix.lower() in IMAGE_SUFFIXES | FOREIGN_SUFFIXES
        and is_visible(child.name)
        and child.is_file()
    ]


def warn_of_loose_photos(place: Path) -> None:
    """Tells of photos that are in no class."""
    count = len(loose_photos(place))
    if count:
        logging.warning(
            "%d photos directly in %s are passed over: put them into the folders of their classes",
            count,
            place,
        )


def class_folders(place: Path) -> dict[str, Path]:
    """Class name to folder, in folder-name order."""
    spellings: dict[str, str] = {}
    return {
        one_spelling(folder.name, spellings, place): folder for folder in visible_folders(place)
    }


def at_least_two(classes: dict[str, Path], place: Path) -> dict[str, Path]:
    """Refuses what leaves nothing to tell apart."""
    if len(classes) < 2:
        raise UserError(
            f"{place} has {len(classes)} class(es): put the photos of each class into a folder "
            "named as the class, at least two of them"
        )
    return classes


def read_classes(base: Path, place: Path, folders: Sequence[Path | None]) -> Split:
    """All images below each class's folder; a class without a folder in this split has none."""
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
                f"{folder} holds {len(unread)} photos such as {unread[0].name}, but none that can "
                "be read: convert them to JPEG"
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
            "%d photos below %s are passed over (%s cannot be read): convert them to JPEG",
            foreign,
            place,
            ", ".join(sorted(FOREIGN_SUFFIXES)),
        )
    return make_split(base, images)


def image_files(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Files of these endings at any depth, in path order; hidden ones left out.

    Links to folders are followed, each folder once: a link may lead back to where it is.
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
    """A photo's file alone; all images in a folder.

    Raises:
        UserError: If nothing is there, or no image in the folder.
    """
    path = Path(place).expanduser()
    if not path.exists():
        raise UserError(f"there is no file or folder {place}")
    found = image_files(path) if path.is_dir() else [path]
    if not found:
        raise UserError(f"the folder {place} holds no image")
    return found
