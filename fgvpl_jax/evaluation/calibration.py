"""One temperature, so that a printed probability means what it says."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

from fgvpl_jax.evaluation.metrics import log_softmax

TEMPERATURES = (0.02, 50.0)


def fit_temperature(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> float:
    """The T that makes softmax(logits / T) fit best; it changes no ranking.

    Fits to smoothed targets, (N + 1) / (N + k) for the true class and 1 / (N + k) for each other
    one, so that a model that was right on all of a few photos is not believed to be right always
    (Platt 1999, for k classes).

    Args:
        logits: Of images that the model was not trained on, nor is tested on.
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
