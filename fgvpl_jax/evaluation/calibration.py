"""One temperature, so that a printed probability means what it says."""

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar

from fgvpl_jax.evaluation.metrics import score

# Far beyond what a usable classifier needs; keeps a perfect one from running off to 0.
TEMPERATURES = (0.02, 50.0)


def fit_temperature(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> float:
    """The T with the smallest NLL of softmax(logits / T); it changes no ranking.

    Args:
        logits: Of images that the model was not trained on, nor is tested on.
        labels: True classes.
    """

    def loss(log_temperature: float) -> float:
        return score(logits / np.exp(log_temperature), labels).nll

    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))
