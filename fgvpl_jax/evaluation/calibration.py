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
    others; its gain over a temperature of 1, see `cautious_losses`, must exceed its standard error.

    Args:
        logits: Logits of images that are used neither for training nor for testing.
        labels: True classes; at least two images.
    """
    gains = np.empty(len(labels))
    unchanged = cautious_losses(logits, labels)
    folds = np.empty(len(labels), np.int64)
    folds[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % FOLDS
    for fold in range(FOLDS):
        out = folds == fold
        temperature = fit_temperature(logits[~out], labels[~out])
        gains[out] = (unchanged - cautious_losses(logits / temperature, labels))[out]
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


def cautious_losses(
    logits: Float[np.ndarray, "N k"], labels: Int[np.ndarray, "N"]
) -> Float64[np.ndarray, "N"]:
    """Returns each image's cross-entropy as if one more image were taken for the runner-up.

    By the rule of succession the target of the true class is (N + 1) / (N + 2). The other class of
    the highest logit has the rest. Without it, a classifier that is right on a few photos could not
    be too sure; equal parts for all other classes would charge for classes that no image resembles.
    """
    log_probabilities = log_softmax(logits.astype(np.float64))
    rows, count = np.arange(len(labels)), len(labels)
    own = log_probabilities[rows, labels]
    log_probabilities[rows, labels] = -np.inf
    return -((count + 1) * own + log_probabilities.max(axis=1)) / (count + 2)
