"""What a classifier's probabilities are worth, in float64 on the host."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

ECE_BINS = 15


class Scores(NamedTuple):
    """Fractions in [0, 1], except `nll` in nats.

    Attributes:
        accuracy: Share of images whose largest logit is their class's.
        mean_class_accuracy: Mean of the per-class accuracies over the classes that have images.
        nll: Mean negative log-likelihood.
        ece: Expected calibration error, 15 equal bins of the largest probability.
    """

    accuracy: float
    mean_class_accuracy: float
    nll: float
    ece: float


def score(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> Scores:
    """Scores one set of logits.

    Args:
        logits: One row an image; the smallest index wins ties.
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
    """Row-wise, without overflow."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def confidence_bins(confidence: Float[np.ndarray, "N"]) -> Int[np.ndarray, "N"]:
    """Number of each confidence's bin; bin i is (i/15, (i+1)/15]."""
    return np.clip(np.ceil(confidence * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)


def expected_calibration_error(confidence: Float[np.ndarray, "N"], correct: np.ndarray) -> float:
    """Mean over images of |accuracy - confidence| of their bin."""
    gap = np.bincount(confidence_bins(confidence), weights=correct - confidence, minlength=ECE_BINS)
    return float(np.abs(gap).sum() / len(confidence))
