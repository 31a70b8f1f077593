"""Compares object masks with the true masks, for data whose true masks are known."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped

RANDOM_DRAWS = 20


class MaskIoU(NamedTuple):
    """Mean intersection over union with the true masks, counted in pixels.

    Attributes:
        object_mask: Mean IoU of the model's masks.
        everything: Mean IoU of a mask that covers the whole image.
        centred_box: Mean IoU of a centred box with the area of the model's mask.
        random: Mean IoU, over 20 draws, of as many random patches as the model's mask has.
    """

    object_mask: float
    everything: float
    centred_box: float
    random: float


def mask_iou(
    masks: Bool[np.ndarray, "N n"], truth: Bool[np.ndarray, "N H W"], grid: tuple[int, int]
) -> MaskIoU:
    """Compares masks of patches with masks of pixels.

    Args:
        masks: True for patches of the object, row-major.
        truth: True for pixels of the object.
        grid: Patch rows and columns, (gh, gw).
    """
    rng = np.random.default_rng(0)
    scores = [mask_iou_of(mask, true, grid, rng) for mask, true in zip(masks, truth, strict=True)]
    return MaskIoU(*(float(m) for m in np.mean(scores, axis=0)))


def mask_iou_of(
    mask: Bool[np.ndarray, "n"],
    truth: Bool[np.ndarray, "H W"],
    grid: tuple[int, int],
    rng: np.random.Generator,
) -> MaskIoU:
    """Compares the mask of one image; `rng` draws the random patches."""
    side = (truth.shape[0], truth.shape[1])
    draws = [iou(to_pixels(rng.permutation(mask), grid, side), truth) for _ in range(RANDOM_DRAWS)]
    return MaskIoU(
        object_mask=iou(to_pixels(mask, grid, side), truth),
        everything=iou(np.ones(side, bool), truth),
        centred_box=iou(centred_box(mask.mean(), side), truth),
        random=float(np.mean(draws)),
    )


def to_pixels(
    patches: Shaped[np.ndarray, "n"], grid: tuple[int, int], side: tuple[int, int]
) -> Shaped[np.ndarray, "H W"]:
    """Returns each pixel's value, that of the patch that covers it.

    Where the grid does not divide the sides, a pixel belongs to the patch of its top left corner.
    """
    rows, columns = (np.arange(n) * count // n for n, count in zip(side, grid, strict=True))
    return patches.reshape(grid)[np.ix_(rows, columns)]


def centred_box(share: float, side: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Returns a centred box with the image's aspect ratio that covers this share of the image."""
    box = np.zeros(side, bool)
    height, width = (round(length * np.sqrt(share)) for length in side)
    top, left = (side[0] - height) // 2, (side[1] - width) // 2
    box[top : top + height, left : left + width] = True
    return box


def iou(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> float:
    """Returns the intersection over union, or 0 where both masks are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
