"""Evidence for a class: what its probability loses when a region of the photo is hidden."""

from itertools import product
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fgvpl_jax.clip import ImageEncoder, ImageTower
from fgvpl_jax.inference.programs import ChangedClassArrays, Inference, padded_batch

WINDOW_SHARE = 3 / 8  # of the grid's side
BATCH_SIZE = 32


class ClassEvidence(NamedTuple):
    """Evidence in one photo for one class.

    Attributes:
        class_name: The class.
        map: Mean loss of the class's log probability over the windows that hide a patch, each
            divided by the window's number of patches; negative where hiding makes the class more
            probable.
    """

    class_name: str
    map: Float[np.ndarray, "gh gw"]


def hiding_windows(grid: tuple[int, int]) -> Bool[np.ndarray, "w gh gw"]:
    """Returns square windows that cover the grid evenly, up to its edges; True is hidden.

    A window is 3/8 of the grid's side, because a class is seldom decided by one patch: what is left
    of an object shows the same class. Windows overlap by about half, and every patch is hidden by
    equally many of them, except for the rounding of their step.
    """
    starts = []
    sides = [max(1, round(WINDOW_SHARE * length)) for length in grid]
    for length, side in zip(grid, sides, strict=True):
        starts.append(range(1 - side, length, max(1, side // 2)))
    windows = np.zeros((len(starts[0]) * len(starts[1]), *grid), bool)
    for window, (top, left) in zip(windows, product(*starts), strict=True):
        window[max(top, 0) : top + sides[0], max(left, 0) : left + sides[1]] = True
    return windows


def mean_colour(encoder: ImageEncoder) -> UInt8[np.ndarray, "3"]:
    """Returns the colour that the checkpoint's normalisation maps to 0."""
    colour = -np.asarray(encoder.pixel_shift[...]) / np.asarray(encoder.pixel_scale[...])
    return np.clip(np.rint(colour), 0, 255).astype(np.uint8)


def filled(
    crop: UInt8[np.ndarray, "H W 3"],
    patches: Bool[np.ndarray, "gh gw"],
    patch_size: int,
    colour: UInt8[np.ndarray, "3"],
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the crop with some patches filled with a colour."""
    pixels = patches.repeat(patch_size, axis=0).repeat(patch_size, axis=1)
    result = crop.copy()  # pixels beyond whole patches stay, because the tower ignores them
    result[: pixels.shape[0], : pixels.shape[1]][pixels] = colour
    return result


def evidence_map(
    inference: Inference,
    crop: UInt8[np.ndarray, "H W 3"],
    label: int,
    colour: UInt8[np.ndarray, "3"],
    vision: ImageTower,
    changes: ChangedClassArrays | None = None,
) -> Float[np.ndarray, "gh gw"]:
    """Returns the evidence in one crop for one class; see `ClassEvidence`.

    The classifier predicts the crop once as it is and once with each window filled with one colour.
    Most grids have 49 to 100 windows.

    Args:
        inference: The device programs.
        crop: The crop that the model sees.
        label: Index of the class, among the trained and the added classes.
        colour: Colour of hidden patches.
        vision: Tower whose patches are hidden.
        changes: Changes of the classes.
    """
    windows, patch_size = hiding_windows(vision.grid), vision.config.patch_size
    hidden = [crop, *(filled(crop, window, patch_size, colour) for window in windows)]
    log_probabilities = []
    for start in range(0, len(hidden), BATCH_SIZE):
        batch = hidden[start : start + BATCH_SIZE]
        features, _ = inference.encode(padded_batch(batch, BATCH_SIZE), scored=False)
        probabilities = inference.recognise(features, changes).probabilities[: len(batch), label]
        log_probabilities += list(np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)))
    lost = log_probabilities[0] - np.asarray(log_probabilities[1:])
    shares = windows / windows.sum(axis=(1, 2), keepdims=True)
    return np.einsum("w,whv->hv", lost, shares) / windows.sum(axis=0)
