"""The training augmentation (section 4.2, the same as in CoOp and Tip-Adapter)."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

AREA = (0.5, 1.0)
ASPECT = (3 / 4, 4 / 3)
TRIES = 10

Transform = Callable[[Image.Image], UInt8[np.ndarray, "H W 3"]]
Augmentation = Callable[[Image.Image, np.random.Generator], UInt8[np.ndarray, "H W 3"]]


class Crop(NamedTuple):
    """Random choices for one augmented photo.

    Attributes:
        box: Cropped area (left, top, right, bottom) in pixels.
        flip: Whether the crop is mirrored horizontally.
    """

    box: tuple[int, int, int, int]
    flip: bool


def random_crop_and_flip(size: int, resample: Image.Resampling) -> Augmentation:
    """Returns the augmentation: a random crop to size × size, flipped half of the time.

    Args:
        size: Side of the result in pixels.
        resample: Pillow's filter for the resize.
    """
    return partial(_crop_and_flip, size, resample)


def _crop_and_flip(
    size: int, resample: Image.Resampling, image: Image.Image, rng: np.random.Generator
) -> UInt8[np.ndarray, "H W 3"]:
    box, flip = random_crop(*image.size, rng)
    crop = image.crop(box).resize((size, size), resample)
    if flip:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(crop, np.uint8)


def random_crop(width: int, height: int, rng: np.random.Generator) -> Crop:
    """Draws a box like `random_box`, and a flip half of the time."""
    box = random_box(width, height, rng)
    return Crop(box, bool(rng.random() < 0.5))


def random_box(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Draws a box (left, top, right, bottom) of 50-100% of the area and an aspect of 3/4 to 4/3.

    The logarithm of the aspect is uniform. After ten boxes that do not fit, returns the largest
    centred box with an allowed aspect.
    """
    for _ in range(TRIES):
        area = width * height * rng.uniform(*AREA)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w = min(width, max(1, round(height * ASPECT[1])))
    h = min(height, max(1, round(width / ASPECT[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
