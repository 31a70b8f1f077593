"""How well object masks meet the truth, where the truth is known."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

RANDOM_DRAWS = 20


class MaskIoU(NamedTuple):
    """Mean intersection over union with the true masks, in pixels.

    Attributes:
        object_mask: Of the model's masks.
        everything: Of a mask that keeps all.
        centred_box: Of a centred square of the model's mask's area.
        random: Of random patches, as many as the model's mask has; mean of 20 draws.
    """

    object_mask: float
    everything: float
    centred_box: float
    random: float


def mask_iou(
    masks: Bool[np.ndarray, "N n"], truth: Bool[np.ndarray, "N H W"], grid: tuple[int, int]
) -> MaskIoU:
    """Compares patch masks with pixel masks.

    Args:
        masks: Patches of the object, row-major.
        truth: True on the object's pixels.
        grid: (gh, gw).
    """
    side = truth.shape[1:]
    rng = np.random.default_rng(0)
    scores = []
    for mask, true in zip(masks, truth, strict=True):
        draws = [
            iou(to_pixels(rng.permutation(mask), grid, side), true) for _ in range(RANDOM_DRAWS)
        ]
        scores.append(
            (
                iou(to_pixels(mask, grid, side), true),
                iou(np.ones(side, bool), true),
                iou(centred_box(mask.mean(), side), true),
                float(np.mean(draws)),
            )
        )
    return MaskIoU(*(float(m) for m in np.mean(scores, axis=0)))


def to_pixels(
    mask: Bool[np.ndarray, "n"], grid: tuple[int, int], side: tuple[int, int]
) -> Bool[np.ndarray, "H W"]:
    """Each patch as the pixels that it covers; where sides do not divide, by each one's corner."""
    rows, columns = (np.arange(n) * count // n for n, count in zip(side, grid, strict=True))
    return mask.reshape(grid)[np.ix_(rows, columns)]


def centred_box(share: float, side: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """A centred box of the image's aspect that covers this share of it."""
    box = np.zeros(side, bool)
    height, width = (round(length * np.sqrt(share)) for length in side)
    top, left = (side[0] - height) // 2, (side[1] - width) // 2
    box[top : top + height, left : left + width] = True
    return box


def iou(a: Bool[np.ndarray, "H W"], b: Bool[np.ndarray, "H W"]) -> float:
    """Intersection over union; 0 where both are empty."""
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else 0.0
