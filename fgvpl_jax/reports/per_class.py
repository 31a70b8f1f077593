"""Accuracy and confusions by class, and how well confidence matches accuracy."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.evaluation.metrics import (
    ECE_BINS,
    confidence_bins,
    expected_calibration_error,
)
from fgvpl_jax.reports.panels import Panel, Row
from fgvpl_jax.reports.records import RunRecord

PredictionsByRun = Mapping[RunRecord, SavedPredictions]


class Reliability(NamedTuple):
    """Confidence compared with accuracy, in bins (i/15, (i+1)/15] of confidence.

    Attributes:
        confidence: Mean confidence in each bin; NaN for an empty bin.
        accuracy: Accuracy in each bin; NaN for an empty bin.
        share: Share of all images in each bin.
        ece: Expected calibration error.
    """

    confidence: Float[np.ndarray, "bins"]
    accuracy: Float[np.ndarray, "bins"]
    share: Float[np.ndarray, "bins"]
    ece: float


def confusion_matrix(runs: Sequence[SavedPredictions]) -> Int[np.ndarray, "k k"]:
    """Counts images by true (row) and predicted (column) class, summed over runs."""
    k = len(runs[0].class_names)
    pairs = np.concatenate([run.labels.astype(np.int64) * k + run.predicted for run in runs])
    return np.bincount(pairs, minlength=k * k).reshape(k, k)


def class_accuracies(confusion: Int[np.ndarray, "k k"]) -> Float[np.ndarray, "k"]:
    """Returns the share of each class's images predicted correctly; NaN for no image."""
    totals = confusion.sum(axis=1).astype(np.float64)
    totals[totals == 0] = np.nan
    return np.diag(confusion) / totals


def worst_confusions(
    confusion: Int[np.ndarray, "k k"], most: int
) -> list[tuple[int, int, int, float]]:
    """Returns the most frequent mistakes.

    Each is (true class, predicted class, images, share of the true class's images).
    """
    wrong = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    totals = confusion.sum(axis=1)
    pairs = [(int(i // len(wrong)), int(i % len(wrong))) for i in order]
    return [
        (true, predicted, int(wrong[true, predicted]), float(wrong[true, predicted] / totals[true]))
        for true, predicted in pairs
        if wrong[true, predicted]
    ]


def reliability(confidence: Float[np.ndarray, "N"], correct: np.ndarray) -> Reliability:
    """Bins images by the confidence in their predicted class."""
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


def predictions_of_row(
    panel: Panel, key: Row, predictions: PredictionsByRun
) -> list[SavedPredictions]:
    """Returns the predictions of a row's runs at the most shots."""
    return [
        predictions[record]
        for record in panel.records
        if (record.row, record.shots) == (key, panel.most_shots) and record in predictions
    ]
