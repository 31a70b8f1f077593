"""One's own photos: a folder of class folders, or one such folder per split."""

from collections.abc import Sequence, Set
from pathlib import Path

from absl import logging

from fgvpl_jax.data.splits import Dataset, Split, class_name, make_split, same_name
from fgvpl_jax.errors import UserError

IMAGE_SUFFIXES = {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"}
IMAGE_SUFFIXES |= {".ppm", ".tif", ".tiff", ".webp"}
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
    `root/train/<class>/…` with optional `val` and `test` beside `train`.

    Args:
        root: The folder.
    Raises:
        UserError: If there is no such folder, a class has no image, two folders come to one class
            name, or a split has a class that `train` lacks.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        raise UserError(f"there is no folder {root}: set --config.data.root to your photos")
    children = {child.name: child for child in visible_folders(base)}
    if "train" not in children or not children.keys() <= SPLIT_FOLDERS.keys():
        classes = at_least_two(class_folders(base), base)
        photos = read_classes(base, base, list(classes.values()))
        return Dataset(tuple(classes), photos, None, None, "none, all photos are for training")
    splits: dict[str, Path] = {}
    for name, child in children.items():
        role = SPLIT_FOLDERS[name]
        if role in splits:
            raise UserError(f"{base} has both {splits[role].name} and {name}: keep one")
        splits[role] = child
    classes = at_least_two(class_folders(splits["train"]), splits["train"])
    known = {same_name(name): name for name in classes}
    loaded: dict[str, Split] = {}
    for role, place in splits.items():
        found = class_folders(place)
        unknown = [name for name in found if same_name(name) not in known]
        if unknown:
            raise UserError(f"{place} has classes that {splits['train']} lacks: {unknown}")
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


def visible_folders(place: Path) -> list[Path]:
    """Its folders in name order, without hidden ones and what archivers leave behind."""
    return sorted(
        child
        for child in place.iterdir()
        if child.is_dir() and not child.name.startswith((".", "__"))
    )


def class_folders(place: Path) -> dict[str, Path]:
    """Class name to folder, in folder-name order."""
    found: dict[str, Path] = {}
    for folder in visible_folders(place):
        name = class_name(folder.name)
        twin = next((n for n in found if same_name(n) == same_name(name)), None)
        if twin is not None:
            raise UserError(
                f"the folders {found[twin].name!r} and {folder.name!r} in {place} are both class "
                f"{name!r}: rename or merge them"
            )
        found[name] = folder
    return found


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
        files = image_files(folder, IMAGE_SUFFIXES)
        found = [path.relative_to(base).as_posix() for path in files]
        if not found:
            raise UserError(
                f"{folder} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}): add some, or "
                "remove the folder"
            )
        foreign += len(image_files(folder, FOREIGN_SUFFIXES))
        images += [(key, label) for key in found]
    if foreign:
        logging.warning(
            "%d photos below %s are passed over (%s cannot be read): convert them to JPEG",
            foreign,
            place,
            ", ".join(sorted(FOREIGN_SUFFIXES)),
        )
    return make_split(base, images)


def image_files(folder: Path, suffixes: Set[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Files of these endings at any depth, in path order; hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes
        and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
        and path.is_file()
    )
