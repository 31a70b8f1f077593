"""The image encoder: from uint8 photos to image features, including the normalisation."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fgvpl_jax.clip.towers import ImageTower
from fgvpl_jax.variables import Frozen, to_device


@runtime_checkable
class FrozenEncoder(Protocol):
    """A module without trained parameters, whose features of photos are computed once and kept.

    Attributes:
        feature_dim: Number of values of a photo's features.
        settings: Everything but the backbone that the features depend on, as JSON data.
    """

    @property
    def feature_dim(self) -> int:
        """Number of values."""

    @property
    def settings(self) -> list[Any]:
        """JSON data."""

    def __call__(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b c"]:
        """Returns the features of photos."""


class ImageEncoder(nnx.Module):
    """The checkpoint's normalisation followed by the frozen image tower.

    Attributes:
        vision: The tower, shared with its other users.
    """

    def __init__(
        self,
        vision: ImageTower,
        *,
        mean: Float[np.ndarray, "3"],
        std: Float[np.ndarray, "3"],
        rescale_factor: float | np.floating,
    ):
        self.vision = vision
        self.pixel_scale = Frozen(to_device(rescale_factor / std, None))
        self.pixel_shift = Frozen(to_device(-mean / std, None))

    @property
    def feature_dim(self) -> int:
        """Returns e; see `FrozenEncoder`."""
        return self.vision.config.embed_dim

    @property
    def settings(self) -> list[Any]:
        """Returns an empty list; see `FrozenEncoder`."""
        return []

    def normalize_pixels(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """Returns (images · rescale_factor - mean) / std with the checkpoint's numbers."""
        scale = self.pixel_scale[...]
        return images.astype(scale.dtype) * scale + self.pixel_shift[...]

    def __call__(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b e"]:
        """Returns raw image features."""
        return self.vision(self.normalize_pixels(images))
