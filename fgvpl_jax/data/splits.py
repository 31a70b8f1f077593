"""The common form of every data source: class names and up to three splits."""

import hashlib
import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int, Int32
from PIL import Image

from fgvpl_jax.data.entries import Skipped, refuse_misread_name
from fgvpl_jax.data.images import decode_image
from fgvpl_jax.errors import UserError

# Invisible characters that Unicode does not call format characters: fillers, the blank of braille,
# the grapheme joiner, and the variation selectors, which choose between forms of a symbol.
INVISIBLE = {"\u034f", "\u115f", "\u1160", "\u17b4", "\u17b5", "\u2800", "\u3164", "\uffa0"}
INVISIBLE |= {chr(code) for code in range(0xFE00, 0xFE10)}
# Some scripts spell words with them.
JOINERS = "\u200c\u200d"


@dataclass(frozen=True, eq=False)
class Split:
    """Image files below one folder, with their labels.

    Attributes:
        root: Folder that holds the images.
        keys: Path of each image relative to `root`, with forward slashes.
        labels: Class of each image.
        copies: Number of the group of copies that each image belongs to, of any classes; None if no
            image is known to be a copy.
    """

    root: Path
    keys: tuple[str, ...]
    labels: Int32[np.ndarray, "N"]
    copies: Int[np.ndarray, "N"] | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, index: int) -> Path:
        """Returns the path of image `index`."""
        return self.root / self.keys[index]

    def image(self, index: int) -> Image.Image:
        """Reads and decodes image `index`.

        Raises:
            UnreadableImage: If the image cannot be decoded.
        """
        return decode_image(self.path(index))

    def fingerprint(self) -> str | None:
        """Returns a digest of each file's path, size and times; opens no file.

        Returns:
            A digest that changes whenever an image may have changed; None if the images are not
            files, so that changes are not detected.
        """
        root = self.root.resolve()
        return fingerprint_files(root / key for key in self.keys)

    def select(self, indices: Sequence[int]) -> "Split":
        """Returns the images at `indices`, in that order."""
        places = np.asarray(indices, np.int64)
        return replace(
            self,
            keys=tuple(self.keys[i] for i in indices),
            labels=self.labels[places],
            copies=None if self.copies is None else self.copies[places],
        )

    @property
    def first_copies(self) -> Int[np.ndarray, "N"]:
        """Place of the first image of each image's group of copies; its own if it is no copy."""
        if self.copies is None:
            return np.arange(len(self))
        _, places, groups = np.unique(self.copies, return_index=True, return_inverse=True)
        return places[groups]

    @property
    def num_different(self) -> int:
        """Number of different images: copies count once."""
        return len(np.unique(self.first_copies))


@dataclass(frozen=True)
class Dataset:
    """A benchmark or a user's own photos.

    Attributes:
        class_names: Class names in label order, ready for a text template.
        train: Images that few-shot images are drawn from.
        validation: Images for choosing λ; None if the data have no validation split.
        test: Images that are read once, at the end; None if the data have no test split.
        split_protocol: Description of how the splits were made, and by whom, for users and
            `results.json`.
        left_out: Keys of published images that the source lacks on purpose.
        skipped: Entries of a user's folder that are in no split: maps each reason to their paths.
        other: Photos of things that belong to no class; None without any. Their labels are 0.
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None
    split_protocol: str
    left_out: tuple[str, ...] = ()
    skipped: Skipped = field(default_factory=dict)
    other: Split | None = None


def class_name(raw: str) -> str:
    """Returns a class name ready for a sentence.

    `_` becomes a space, Unicode is composed, and invisible characters are removed.

    Raises:
        UserError: If nothing is left, or the name is not valid Unicode or has control characters.
    """
    if any(unicodedata.category(letter) == "Cs" for letter in raw):
        raise UserError(f"a class is called {raw!r}, which is not UTF-8: rename it")
    visible = "".join(letter for letter in raw if letter in JOINERS or not is_invisible(letter))
    name = " ".join(unicodedata.normalize("NFC", visible).replace("_", " ").split())
    if not name.strip(JOINERS + " "):
        raise UserError(f"a class is called {raw!r}: give it a name of at least one letter")
    if any(unicodedata.category(letter) == "Cc" for letter in name):  # terminals execute them
        raise UserError(f"a class is called {raw!r}, with control characters: remove them")
    return name


def same_name(name: str) -> str:
    """Returns a form that is equal for all spellings of one class name."""
    visible = "".join(letter for letter in name if not is_invisible(letter))
    folded = unicodedata.normalize("NFKC", visible).casefold()
    return re.sub(r"^(\d+)\.0+$", r"\1", folded)  # programs write the label 1 as 1.0, too


def is_invisible(letter: str) -> bool:
    """Returns whether a character has no width on a screen, or is a blank that is no space."""
    return unicodedata.category(letter) == "Cf" or letter in INVISIBLE


def one_spelling(raw: str, spellings: dict[str, str], origin: object) -> str:
    """Returns `class_name(raw)`, but refuses a second spelling of one class.

    Args:
        raw: Class name as spelled in a list, a split file or a folder.
        spellings: Spellings seen so far; this one is added.
        origin: File or folder with this spelling, for error messages.
    Raises:
        UserError: If this name was spelled differently before, or is not a valid name.
    """
    name = class_name(raw)
    twin = spellings.setdefault(same_name(name), raw)
    if twin != raw:
        raise UserError(
            f"{origin} has the classes {twin!r} and {raw!r}, which are one name in a sentence: "
            "spell them alike if they are one class, or rename one of them"
        )
    return name


def key_below(raw: str, origin: object) -> str:
    """Returns a photo's path as a key, with one spelling per file.

    Raises:
        UserError: If the path is absolute or leaves the folder that it starts from.
    """
    path = PurePosixPath(raw)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{origin} names {raw!r}, which leaves the folder of its photos: use paths relative to "
            "that folder, without '..'"
        )
    return str(path)


def fingerprint_files(files: Iterable[Path]) -> str | None:
    """Returns a digest of the files' paths, sizes and times; None if a file is missing."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError:
            return None
        # The change time too: a copy that preserves times can replace a file with another photo.
        stamp = (str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(stamp).encode())
    return digest.hexdigest()


def make_split(root: Path, images: Sequence[tuple[str, int]]) -> Split:
    """Returns a split of (key, label) pairs."""
    keys = tuple(key for key, _ in images)
    return Split(root, keys, np.array([label for _, label in images], np.int32))


def check_present(folder: Path, keys: Iterable[str], named_by: Path) -> None:
    """Refuses data with missing images; lists each folder once and opens no image."""
    by_parent = defaultdict(list)
    for key in keys:
        path = PurePosixPath(key)
        by_parent[path.parent].append(path)
    missing = []
    for parent, paths in by_parent.items():
        place = folder / parent
        # `os.path`, because pathlib raises an error for a name that is too long. The listing itself
        # says which entries are regular files; only links need an extra system call.
        entries = os.scandir(place) if os.path.isdir(place) else ()
        there = {entry.name for entry in entries if entry.is_file()}
        missing += [str(path) for path in paths if path.name not in there]
    for name in missing:
        refuse_misread_name(name, folder)
    if missing:
        raise UserError(
            f"{len(missing)} images that {named_by} names are not in {folder}, such as "
            f"{', '.join(sorted(missing)[:3])}: unpack the benchmark's whole archive there"
        )
