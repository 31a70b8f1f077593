"""Description of a family of checkpoints: its files, its towers, and the names of its tensors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgvpl_jax.clip.image_input import ImageProcessor
from fgvpl_jax.clip.text_input import Tokenizer
from fgvpl_jax.clip.towers import ImageTower, TextTower

Shape = tuple[int, ...]


class Layout(NamedTuple):
    """The order of a published tensor's axes, compared with our variable's.

    Attributes:
        published_shape: Returns the published tensor's shape from our variable's.
        ours: Returns our variable from the published tensor.
    """

    published_shape: Callable[[Shape], Shape]
    ours: Callable[[np.ndarray], np.ndarray]


def _patches_shape(shape: Shape) -> Shape:
    side = math.isqrt(shape[0] // 3)
    return shape[1], 3, side, side


AS_IS = Layout(lambda shape: shape, lambda tensor: tensor)
# A kernel of torch.nn.Linear, [out, in].
LINEAR = Layout(lambda shape: shape[::-1], lambda tensor: tensor.T)
# The convolution over patches, [out, in, h, w], which is a product with [h · w · in, out].
PATCHES = Layout(
    _patches_shape, lambda tensor: tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])
)


def stacked(place: int, count: int, layout: Layout) -> Layout:
    """Returns the layout of one of several equal parts of a tensor that are stacked on its rows."""

    def shape(ours: Shape) -> Shape:
        rows, *others = layout.published_shape(ours)
        return (count * rows, *others)

    return Layout(shape, lambda tensor: layout.ours(np.split(tensor, count)[place]))


class Source(NamedTuple):
    """The published tensor that holds one of our variables.

    Attributes:
        name: Its name, or the last part of it in a table of names.
        layout: Order of its axes.
    """

    name: str
    layout: Layout


# Our name of a module or variable, or of several nested ones with dots -> the published name. Parts
# that no key names, such as the number of a layer, stay as they are.
Names = Mapping[str, str | Source]


def source_of(path: tuple, names: Names) -> Source:
    """Returns the published tensor of the variable at `path` in a tower."""
    parts = [str(part) for part in path]
    published: list[str] = []
    while parts:
        # The longest key that the rest of the path begins with.
        for length in range(len(parts), 0, -1):
            found = names.get(".".join(parts[:length]))
            if found is not None:
                break
        else:
            found, length = parts[0], 1
        parts = parts[length:]
        if isinstance(found, Source):
            assert not parts, f"{path} continues after a tensor"
            return Source(".".join([*published, found.name]), found.layout)
        published.append(found)
    return Source(".".join(published), AS_IS)


@dataclass(frozen=True)
class Architecture:
    """One checkpoint's model without its weights, read from its small files.

    Attributes:
        vision: Image tower without weights; see `without_weights`.
        text: Text tower without weights.
        vision_names: Published names of the image tower's tensors.
        text_names: Published names of the text tower's tensors.
        tokenizer: The checkpoint's tokenizer.
        image_processor: The checkpoint's preparation of photos.
        unused: Names of tensors that the checkpoint must have, but that change no prediction.
    """

    vision: ImageTower
    text: TextTower
    vision_names: Names
    text_names: Names
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Family:
    """A family of checkpoints that are published in the same form.

    Attributes:
        name: Name of the form in messages.
        config_file: Name of the JSON file that describes the model.
        matches: Whether the content of such a file describes a model of this family.
        weight_formats: Name of the first file of each format of the weights, in order of
            preference.
        small_files: Names of the config, tokenizer and image processor files.
        read: Reads an architecture from a folder and the content of its config file.
    """

    name: str
    config_file: str
    matches: Callable[[dict[str, Any]], bool]
    weight_formats: tuple[str, ...]
    small_files: tuple[str, ...]
    read: Callable[[Path, dict[str, Any]], Architecture]
