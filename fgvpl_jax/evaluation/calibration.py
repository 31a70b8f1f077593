"""Fits one temperature, which makes the printed probabilities match how often they are right."""

import numpy as np
from jaxtyping import Float, Float64, Int

from fgvpl_jax.evaluation.metrics import log_softmax
from fgvpl_jax.methods.held_out import best_temperature, smoothed_losses

# Standard deviation of log T about 0 that is assumed before any photo is seen.
PRIOR_DEVIATION = 0.5
FOLDS = 5
# The gain in likelihood must exceed this many of its standard errors.
STANDARD_ERRORS = 1.0


def helpful_temperature(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> float:
    """Returns the fitted temperature, or 1 if it does not clearly improve held-out likelihood.

    The photos are split into five folds. Each fold is judged with the temperature fitted on the
    others; its gain over a temperature of 1 must exceed its standard error.

    Args:
        logits: Logits of images that are used neither for training nor for testing.
        labels: True classes; at least ten images.
    """
    gains = np.empty(len(labels))
    folds = np.empty(len(labels), np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    for fold in range(FOLDS):
        out = folds == fold
        temperature = fit_temperature(logits[~out], labels[~out])
        gains[out] = log_likelihoods(logits[out] / temperature, labels[out])
        gains[out] -= log_likelihoods(logits[out], labels[out])
    helps = gains.mean() > STANDARD_ERRORS * gains.std(ddof=1) / np.sqrt(len(gains))
    return fit_temperature(logits, labels) if helps else 1.0


def fit_temperature(logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]) -> float:
    """Returns the T for which softmax(logits / T) fits the labels best; it changes no ranking.

    T is shrunk towards 1: log T has a normal prior of deviation 0.5, which a few photos hardly
    change and many overrule. The targets are smoothed a little; see `smoothed_losses`.

    Args:
        logits: Logits of images that are used neither for training nor for testing.
        labels: True classes.
    """
    losses = smoothed_losses(logits, labels)
    return best_temperature(lambda t: losses(t).sum() + np.log(t) ** 2 / (2 * PRIOR_DEVIATION**2))


def log_likelihoods(
    logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]
) -> Float64[np.ndarray, "N"]:
    """Returns the logarithm of the probability of each image's true class."""
    return log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]
