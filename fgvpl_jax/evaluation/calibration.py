"""Fits one temperature, which makes the printed probabilities match how often they are right."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

from fgvpl_jax.evaluation.metrics import log_softmax

TEMPERATURES = (0.02, 50.0)


def fit_temperature(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> float:
    """Returns the T for which softmax(logits / T) fits the labels best; it changes no ranking.

    The targets are smoothed, (N + 1) / (N + k) for the true class and 1 / (N + k) for each other
    class, so that a model that was right on all of a few photos does not count as always right
    (Platt 1999, extended to k classes).

    Args:
        logits: Logits of images that are used neither for training nor for testing.
        labels: True classes.
    """
    count, num_classes = logits.shape
    targets = np.full(logits.shape, 1 / (count + num_classes))
    targets[np.arange(count), labels] *= count + 1

    def loss(log_temperature: float) -> float:
        tempered = logits.astype(np.float64) / np.exp(log_temperature)
        return -float((targets * log_softmax(tempered)).sum())

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))
