"""What every source of data comes down to: class names and up to three splits."""

import hashlib
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Int32
from PIL import Image

from fgvpl_jax.data.images import decode_image
from fgvpl_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class Split:
    """Images that are files below one folder, with their labels.

    Attributes:
        root: The folder.
        keys: Each image's path below it, with forward slashes.
        labels: Class of each image.
    """

    root: Path
    keys: tuple[str, ...]
    labels: Int32[np.ndarray, "N"]

    def __len__(self) -> int:
        return len(self.keys)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.keys[index]

    def image(self, index: int) -> Image.Image:
        """Opens and decodes image `index` now; raises `UnreadableImage`."""
        return decode_image(self.path(index))

    def fingerprint(self) -> str | None:
        """Changes whenever an image may have, by each file's path, size and times.

        Opens none of them. None where an image is no file, so that a change would not show.
        """
        root = self.root.resolve()
        return fingerprint_files(root / key for key in self.keys)

    def select(self, indices: Sequence[int]) -> "Split":
        """The images at `indices`, in that order."""
        return replace(
            self,
            keys=tuple(self.keys[i] for i in indices),
            labels=self.labels[np.asarray(indices, np.int64)],
        )


@dataclass(frozen=True)
class Dataset:
    """A benchmark or one's own folder.

    Attributes:
        class_names: In label order, ready for a text template.
        train: Where few-shot images are drawn from.
        validation: Where λ is chosen; None where the data has none.
        test: Read once, at the end; None where the data has none.
        split_protocol: Who made the splits and how, for people and `results.json`.
        left_out: Keys of published images that the source lacks on purpose.
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None
    split_protocol: str
    left_out: tuple[str, ...] = ()


def class_name(raw: str) -> str:
    """A class's name as it goes into a sentence: `_` is a space, Unicode composed.

    Raises:
        UserError: If nothing is left, it is no text, or it holds control characters.
    """
    if any(unicodedata.category(letter) == "Cs" for letter in raw):
        raise UserError(f"a class is called {raw!r}, which is not UTF-8: rename it")
    name = " ".join(unicodedata.normalize("NFC", raw).replace("_", " ").split())
    if not name:
        raise UserError(f"a class is called {raw!r}: give it a name of at least one letter")
    if any(unicodedata.category(letter) == "Cc" for letter in name):  # a terminal would obey them
        raise UserError(f"a class is called {raw!r}, with control characters: remove them")
    return name


def same_name(name: str) -> str:
    """What two spellings of one class have in common."""
    return unicodedata.normalize("NFKC", name).casefold()


def one_spelling(raw: str, spellings: dict[str, str], origin: object) -> str:
    """A class's name, as `class_name`; refuses a second spelling of one class.

    Args:
        raw: As a list, a split file or a folder spells it.
        spellings: What was seen so far; gets this one.
        origin: What spells it so, for errors.
    Raises:
        UserError: If another spelling of this name came before, or it is no name.
    """
    name = class_name(raw)
    twin = spellings.setdefault(same_name(name), raw)
    if twin != raw:
        raise UserError(
            f"{origin} has the classes {twin!r} and {raw!r}, which are one name in a sentence: "
            "spell them alike if they are one class, else rename one"
        )
    return name


def key_below(raw: str, origin: object) -> str:
    """A photo's path as a key, one spelling for one file.

    Raises:
        UserError: If it leaves the folder that it starts from.
    """
    path = PurePosixPath(raw)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(
            f"{origin} names {raw!r}, which leaves the folder of its photos: name them by their "
            "paths below it"
        )
    return str(path)


def fingerprint_files(files: Iterable[Path]) -> str | None:
    """Digest of the files' paths, sizes and times; None if one is not there."""
    digest = hashlib.sha256()
    for file in files:
        try:
            status = file.stat()
        except OSError:
            return None
        # The change time too: copying with times kept can put another photo in a file's place.
        stamp = (str(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(repr(stamp).encode())
    return digest.hexdigest()


def make_split(root: Path, images: Sequence[tuple[str, int]]) -> Split:
    """A split of (key, label) pairs."""
    keys = tuple(key for key, _ in images)
    return Split(root, keys, np.array([label for _, label in images], np.int32))


def check_present(folder: Path, keys: Iterable[str], named_by: Path) -> None:
    """Refuses data whose images are not all there; lists each folder once, opens nothing."""
    by_parent = defaultdict(list)
    for key in keys:
        path = PurePosixPath(key)
        by_parent[path.parent].append(path)
    missing = []
    for parent, paths in by_parent.items():
        place = folder / parent
        # `os.path`: to pathlib a name that is too long is an error, not a folder that is missing.
        # Of plain files the listing itself knows; only links cost a look at where they lead.
        entries = os.scandir(place) if os.path.isdir(place) else ()
        there = {entry.name for entry in entries if entry.is_file()}
        missing += [str(path) for path in paths if path.name not in there]
    if missing:
        raise UserError(
            f"{len(missing)} images that {named_by} names are not in {folder}, such as "
            f"{', '.join(sorted(missing)[:3])}: unpack all of the benchmark's archive there"
        )
