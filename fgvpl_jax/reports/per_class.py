"""Where a method errs, and what its confidence is worth."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.evaluation import Answers
from fgvpl_jax.evaluation.metrics import (
    ECE_BINS,
    confidence_bins,
    expected_calibration_error,
)


class Reliability(NamedTuple):
    """Confidence beside accuracy, in bins (i/15, (i+1)/15] of confidence.

    Attributes:
        confidence: Mean of each bin; NaN where it is empty.
        accuracy: Likewise.
        share: Of all images.
        ece: Expected calibration error.
    """

    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]
    share: Float[np.ndarray, "bins"]
    ece: float


def confusion_matrix(runs: Sequence[Answers]) -> Int[np.ndarray, "k k"]:
    """Images by true (row) and predicted (column) class, summed over runs."""
    k = len(runs[0].class_names)
    pairs = np.concatenate([run.labels.astype(np.int64) * k + run.predicted for run in runs])
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def class_accuracies(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, "k"]:
    """Share of each class's images that got its label; NaN where it has no image."""
    totals = confusion.sum(axis=1).astype(np.float64)
    totals[totals == 0] = np.nan
    return np.diag(confusion) / totals


def worst_confusions(
    confusion: Int[np.ndarray, "k k"], most: int
) -> list[tuple[int, int, int, float]]:
    """The commonest mistakes: true class, predicted class, images, share of the true class's."""
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    totals = confusion.sum(axis=1)
    pairs = [(int(i // len(wrong)), int(i % len(wrong))) for i in order]
    return [
        (true, said, int(wrong[true, said]), float(wrong[true, said] / totals[true]))
        for true, said in pairs
        if wrong[true, said]
    ]


def reliability(confidence: Float[np.ndarray, "N"], correct: np.ndarray) -> Reliability:
    """Bins images by the probability of their predicted class."""
    confidence = confidence.astype(np.float64)
    bins = confidence_bins(confidence)
    counts = np.bincount(bins, minlength=ECE_BINS).astype(np.float64)
    divisor = np.where(counts, counts, np.nan)
    return Reliability(
        confidence=np.bincount(bins, confidence, ECE_BINS) / divisor,
        accuracy=np.bincount(bins, correct, ECE_BINS) / divisor,
        share=counts / len(confidence),
        ece=expected_calibration_error(confidence, correct),
    )
