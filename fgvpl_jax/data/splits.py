"""What every source of data comes down to: class names and up to three splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int32
from PIL import Image

from fgvpl_jax.data.images import decode_image


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
    """

    class_names: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None
    split_protocol: str


def make_split(root: Path, images: Sequence[tuple[str, int]]) -> Split:
    """A split of (key, label) pairs."""
    keys = tuple(key for key, _ in images)
    return Split(root, keys, np.array([label for _, label in images], np.int32))
