"""Scores of a classifier's probabilities, computed in float64 on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

ECE_BINS = 15
CONFIDENCE = 0.95


class Scores(NamedTuple):
    """Scores of one model on one split: fractions in [0, 1], except `nll`, which is in nats.

    Attributes:
        accuracy: Share of images whose largest logit is that of their class.
        mean_class_accuracy: Mean accuracy per class, over the classes that have images.
        nll: Mean negative log-likelihood.
        ece: Expected calibration error over 15 equal bins of the largest probability.
    """

    accuracy: float
    mean_class_accuracy: float
    nll: float
    ece: float


def score(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> Scores:
    """Returns the scores of one set of logits.

    Args:
        logits: One row per image; the smallest index wins ties.
        labels: True classes.
    """
    log_probabilities = log_softmax(logits.astype(np.float64))
    correct = log_probabilities.argmax(axis=1) == labels
    per_class = [correct[labels == c].mean() for c in np.unique(labels)]
    confidence = np.exp(log_probabilities.max(axis=1))
    return Scores(
        accuracy=float(correct.mean()),
        mean_class_accuracy=float(np.mean(per_class)),
        nll=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        ece=expected_calibration_error(confidence, correct),
    )


def log_softmax(logits: Float[np.ndarray, "N k"]) -> Float[np.ndarray, "N k"]:
    """Returns the logarithm of each row's softmax, without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def confidence_bins(confidence: Float[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Returns the index of each confidence's bin; bin i is (i/15, (i+1)/15]."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def expected_calibration_error(confidence: Float[np.ndarray, "N"], correct: np.ndarray) -> float:
    """Returns the mean over images of |accuracy - confidence| of their bin."""
    gap = np.bincount(confidence_bins(confidence), weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(confidence))


def share_interval(count: int, total: int) -> tuple[float, float]:
    """Returns the 95% Wilson interval of the share `count / total`."""
    from scipy.stats import binomtest  # slow to import, and no prediction needs it

    interval = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
