"""Readers of the benchmarks' own lists of training and test images, in CoOp's layout."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from absl import logging

from fgvpl_jax.data.folder import IMAGE_SUFFIXES, image_files, visible_folders
from fgvpl_jax.data.split_protocol import SPLITS, Images, Parts
from fgvpl_jax.errors import UserError

T = TypeVar("T")


@runtime_checkable
class ClassTable(Protocol):
    """The part of a benchmark that a reader of lists needs."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in label order."""

    def label_of(self, name: str) -> int | None:
        """Returns the label of a class; None if the class is left out."""


# Reads the official parts, given the folder of lists, the folder of images and the classes.
ListReader = Callable[[Path, Path, ClassTable], Parts]


def listed_class_folders(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads Caltech101, Food101, DTD or EuroSAT: all images, with a folder per class."""
    labels = {f: _label_or_none(classes, f.name, f) for f in visible_folders(images)}
    found = set(labels.values())
    for label, name in enumerate(classes.class_names):
        if label not in found:
            raise UserError(f"{images} has no folder of class {name!r}: unpack the whole archive")
    return {
        "train": [
            (file.relative_to(images).as_posix(), label)
            for folder, label in labels.items()
            if label is not None
            for file in image_files(folder)
        ]
    }


def oxford_flowers(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads Flowers102: `imagelabels.mat` counts images and labels from 1."""
    labels = _matlab(lists / "imagelabels.mat", "labels", int)
    return {"train": [(f"image_{i:05}.jpg", label - 1) for i, label in enumerate(labels, 1)]}


def oxford_pets(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads OxfordPets: lines such as `Abyssinian_100 1 1 1`; the name contains the breed."""

    def read(file: Path) -> Images:
        names = [line.split()[0] for line in _lines(file)]
        return [(f"{name}.jpg", _label(classes, name.rpartition("_")[0], file)) for name in names]

    folder = lists / "annotations"
    return {"train": read(folder / "trainval.txt"), "test": read(folder / "test.txt")}


def stanford_cars(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads StanfordCars: the development kit's annotations; labels count from 1."""

    def read(file: Path, folder: str) -> Images:
        def image(row: Any) -> tuple[str, int]:
            return f"{folder}/{row['fname'].item()}", int(row["class"].item()) - 1

        return _matlab(file, "annotations", image)

    return {
        "train": read(lists / "devkit" / "cars_train_annos.mat", "cars_train"),
        "test": read(lists / "cars_test_annos_withlabels.mat", "cars_test"),
    }


def sun397(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads SUN397: the first partition, lines such as `/a/abbey/sun_aakbdcgfpksytcwj.jpg`."""

    def read(file: Path) -> Images:
        return [
            (line.lstrip("/"), _label(classes, line.rpartition("/")[0], file))
            for line in _lines(file)
        ]

    return {"train": read(lists / "Training_01.txt"), "test": read(lists / "Testing_01.txt")}


def ucf101(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads UCF101: the first partition, lines such as `YoYo/v_YoYo_g08_c01.avi 101`."""

    def read(file: Path) -> Images:
        videos = [Path(line.split()[0]) for line in _lines(file)]
        folders = [midframes_folder(video.parent.name) for video in videos]
        return [
            (f"{folder}/{video.stem}.jpg", _label(classes, folder, file))
            for folder, video in zip(folders, videos, strict=True)
        ]

    folder = lists / "ucfTrainTestlist"
    return {"train": read(folder / "trainlist01.txt"), "test": read(folder / "testlist01.txt")}


def midframes_folder(action: str) -> str:
    """Returns CoOp's folder of a UCF101 action: `Apply_Eye_Makeup` for `ApplyEyeMakeup`."""
    return "_".join(re.findall("[A-Z][^A-Z]*", action))


def fgvc_aircraft(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads FGVC-Aircraft: lines such as `1025794 707-320`, one list per split."""

    def read(file: Path) -> Images:
        rows = [line.partition(" ") for line in _lines(file)]
        return [(f"{name}.jpg", _label(classes, variant, file)) for name, _, variant in rows]

    return {split: read(lists / f"images_variant_{split}.txt") for split in SPLITS}


def imagenet(lists: Path, images: Path, classes: ClassTable) -> Parts:
    """Reads ImageNet: folders named by codes, listed in `classnames.txt`; tests on validation."""
    file = lists / "classnames.txt"
    rows = [line.partition(" ") for line in _lines(file)]
    codes = [code for code, _, _ in rows]
    if len(set(codes)) != len(classes.class_names) or codes != sorted(codes):
        raise UserError(
            f"{file} has {len(set(codes))} codes: it must list each of ImageNet's 1,000 once, in "
            "order"
        )
    # The codes define the labels; CLIP's names for them were corrected over the years.
    other = [
        f"{code} {theirs!r}, not {ours!r}"
        for (code, _, theirs), ours in zip(rows, classes.class_names, strict=True)
        if theirs != ours
    ]
    if other:
        logging.warning("%s names %d classes differently, such as %s", file, len(other), other[0])

    def read(folder: Path) -> Images:
        missing = [code for code in codes if not (folder / code).is_dir()]
        if missing:
            raise UserError(
                f"{folder} lacks {len(missing)} of {len(codes)} class folders, such as "
                f"{missing[0]}: sort the images into them"
            )
        # Over a million files in flat folders: list names only, without a `stat` of each file.
        return [
            (f"{folder.name}/{code}/{name}", label)
            for label, code in enumerate(codes)
            for name in sorted(os.listdir(folder / code))
            if name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not name.startswith(".")
        ]

    return {"train": read(images / "train"), "test": read(images / "val")}


def check_labels(parts: Parts, num_classes: int, named_by: Path) -> None:
    """Refuses lists with labels outside the range of classes."""
    labels = {label for images in parts.values() for _, label in images}
    if labels and not 0 <= min(labels) <= max(labels) < num_classes:
        raise UserError(
            f"{named_by} has labels {min(labels)} to {max(labels)} for {num_classes} classes: "
            "restore the benchmark's lists"
        )


def check_class_names(found: Sequence[str], expected: Sequence[str], named_by: Path) -> None:
    """Refuses a file whose classes are not the benchmark's, in the same order."""
    for label, (theirs, ours) in enumerate(zip_longest(found, expected)):
        if theirs != ours:
            raise UserError(
                f"{named_by} calls class {label} {theirs!r}, the benchmark {ours!r} "
                f"({len(found)} and {len(expected)} classes): use the benchmark's own file, or "
                "the config of the benchmark that the file belongs to"
            )


def _lines(file: Path) -> Iterator[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file} cannot be read ({error}): restore the benchmark's lists"
        ) from error
    return filter(None, map(str.strip, text.splitlines()))


def _matlab(file: Path, name: str, read: Callable[[Any], T]) -> list[T]:
    from scipy.io import loadmat  # slow to import, and only two benchmarks need it

    try:
        return [read(row) for row in loadmat(file)[name].ravel()]
    except Exception as error:  # scipy may raise any error for a damaged file
        raise UserError(
            f"{file} cannot be read ({error}): restore the benchmark's lists"
        ) from error


def _label(classes: ClassTable, name: str, file: Path) -> int:
    label = _label_or_none(classes, name, file)
    assert label is not None
    return label


def _label_or_none(classes: ClassTable, name: str, place: Path) -> int | None:
    try:
        return classes.label_of(name)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
