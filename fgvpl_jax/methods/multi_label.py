"""Fits one classifier of every label against the rest, on frozen features.

Photos may have several labels or no label, so each label has its own sigmoid instead of a share of
a softmax.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int
from scipy.linalg import solve
from scipy.special import expit, logit

from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.fitted_once import unit
from fgvpl_jax.methods.held_out import first_of_the_best
from fgvpl_jax.methods.interface import Choices

MAX_ITERATIONS = 2000
TOLERANCE = 1e-6  # of the gradient; scikit-learn's default, 1e-4, stops far from the minimum
MOST_PHOTOS = 4096  # with more, every further candidate would take minutes
# Without both a photo with a label and one without it, nothing is learned about the label: its
# value is the same for all photos, this far from 0.
CONSTANT_VALUE = 2.0
# Least slope of the sigmoid times the standard deviation of the values. A positive slope keeps the
# order of the values; at this one, probabilities differ by less than a point for most photos.
LEAST_STEEPNESS = 0.01


class LabelScorer(NamedTuple):
    """A fitted classifier, whose values grow with how well a label fits.

    Attributes:
        mean: Mean of the unit features.
        scale: Divisor of each feature.
        keys: Standardised features that a Gaussian kernel compares with; empty for a linear method.
        sharpness: γ of the kernel exp(-γ ‖x - y‖²).
        coefficients: Matrix that the kernel, or the features of a linear method, is multiplied by.
        intercepts: Summand of each label.
    """

    mean: Float64[np.ndarray, "e"]
    scale: Float64[np.ndarray, "e"]
    keys: Float64[np.ndarray, "n e"]
    sharpness: Float64[np.ndarray, ""]
    coefficients: Float64[np.ndarray, "m k"]
    intercepts: Float64[np.ndarray, "k"]

    def values(self, features: Float[np.ndarray, "b e"]) -> Float64[np.ndarray, "b k"]:
        """Returns the value of every label for raw features."""
        x = (unit(features) - self.mean) / self.scale
        if len(self.keys):
            x = gaussian(x, self.keys, float(self.sharpness))
        return x @ self.coefficients + self.intercepts


class Sigmoid(NamedTuple):
    """Platt's sigmoid, the same for all labels: probability = σ(slope · value + intercept)."""

    slope: float
    intercept: float

    def probabilities(self, values: Float64[np.ndarray, "b k"]) -> Float64[np.ndarray, "b k"]:
        """Returns the probability of every label."""
        return expit(self.slope * values + self.intercept)


def gaussian(
    x: Float64[np.ndarray, "b e"], keys: Float64[np.ndarray, "n e"], sharpness: float
) -> Float64[np.ndarray, "b n"]:
    """Returns exp(-γ ‖x - key‖²)."""
    squares = (x**2).sum(axis=1)[:, None] + (keys**2).sum(axis=1) - 2 * x @ keys.T
    return np.exp(-sharpness * np.maximum(squares, 0))


def fit_linear_probe(
    features: Float[np.ndarray, "s e"], truth: Bool[np.ndarray, "s k"], choices: Choices
) -> LabelScorer:
    """Fits logistic regression with L2 for every label, by scikit-learn.

    Features are centred and divided by one number, so that their mean square length is 1 and C
    means the same for backbones of all sizes.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x = unit(features)
    mean = x.mean(axis=0)
    length = max(float(np.sqrt(((x - mean) ** 2).sum(axis=1).mean())), 1e-12)
    x = (x - mean) / length
    coefficients, intercepts = np.zeros((x.shape[1], truth.shape[1])), constant_values(truth)
    c = choices["inverse_regularisation"]
    solver = LogisticRegression(C=c, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # C decides more than the last digits
        for label in np.flatnonzero(is_learnable(truth)):
            solver.fit(x, truth[:, label])
            coefficients[:, label], intercepts[label] = solver.coef_[0], solver.intercept_[0]
    scale = np.full(x.shape[1], length)
    return LabelScorer(mean, scale, x[:0], np.zeros(()), coefficients, intercepts)


def fit_kernel_ridge(
    features: Float[np.ndarray, "s e"], truth: Bool[np.ndarray, "s k"], choices: Choices
) -> LabelScorer:
    """Solves (K + λI) A = labels minus their means, with the kernel of `kernel_ridge_plain`.

    The means are the intercepts.
    """
    x = unit(features)
    sharpness = choices["kernel_sharpness"] / 2  # exp(-β (1 - x·y)) for unit vectors
    kernel = gaussian(x, x, sharpness) + choices["kernel_regularisation"] * np.eye(len(x))
    share = truth.mean(axis=0)
    coefficients = solve(kernel, truth - share, assume_a="pos")
    zero, one = np.zeros(x.shape[1]), np.ones(x.shape[1])
    return LabelScorer(zero, one, x, np.asarray(sharpness), coefficients, share)


def fit_svm(
    features: Float[np.ndarray, "s e"], truth: Bool[np.ndarray, "s k"], choices: Choices
) -> LabelScorer:
    """Fits scikit-learn's SVC with its own settings on standardised features, for every label."""
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    scaler = StandardScaler()
    x = scaler.fit_transform(unit(features))
    coefficients, intercepts = np.zeros(truth.shape), constant_values(truth)
    sharpness = 0.0
    for label in np.flatnonzero(is_learnable(truth)):
        machine = SVC().fit(x, truth[:, label])
        coefficients[machine.support_, label] = machine.dual_coef_[0]
        intercepts[label], sharpness = machine.intercept_[0], machine._gamma
    return LabelScorer(
        scaler.mean_, scaler.scale_, x, np.asarray(sharpness), coefficients, intercepts
    )


def is_learnable(truth: Bool[np.ndarray, "s k"]) -> Bool[np.ndarray, "k"]:
    """Returns which labels some of the photos have and others lack."""
    return np.logical_and(truth.any(axis=0), ~truth.all(axis=0))


def constant_values(truth: Bool[np.ndarray, "s k"]) -> Float64[np.ndarray, "k"]:
    """Returns the value of each label that nothing is learned about."""
    return np.where(truth.any(axis=0), CONSTANT_VALUE, -CONSTANT_VALUE)


class LabelMethod(NamedTuple):
    """A method that can learn several labels a photo.

    Attributes:
        fit: Fits the method with one of the candidates.
        grid: Values that out-of-fold predictions choose from, the first ones first.
    """

    fit: Callable[[np.ndarray, np.ndarray, Choices], LabelScorer]
    grid: Sequence[Choices]

    def candidates(self, num_photos: int) -> Sequence[Choices]:
        """Returns the grid; with very many photos, only its first values."""
        return self.grid if num_photos <= MOST_PHOTOS else self.grid[:1]


LABEL_METHODS = {
    "kernel_ridge_plain": LabelMethod(
        fit_kernel_ridge,
        sorted(
            (
                {"kernel_sharpness": 2.0**sharper, "kernel_regularisation": 10.0**step}
                for sharper in (-1, 0, 1)
                for step in (-2, -1, 0, 1, 2)
            ),
            key=lambda one: (
                abs(np.log2(one["kernel_sharpness"])) + abs(np.log10(one["kernel_regularisation"]))
            ),
        ),
    ),
    "linear_probe": LabelMethod(
        fit_linear_probe,
        [{"inverse_regularisation": 10.0**step} for step in (1, 0, 2, -1, 3, -2, 4)],
    ),
    "svm": LabelMethod(fit_svm, [{}]),
}


def label_method(name: str) -> LabelMethod:
    """Returns a method that can learn several labels a photo.

    Raises:
        UserError: If the method cannot; names those that can.
    """
    if name not in LABEL_METHODS:
        raise UserError(
            f"{name} cannot learn several labels a photo: set method to one of "
            f"{', '.join(LABEL_METHODS)}"
        )
    return LABEL_METHODS[name]


def out_of_fold_values(
    method: LabelMethod,
    candidates: Sequence[Choices],
    features: Float[np.ndarray, "N e"],
    truth: Bool[np.ndarray, "N k"],
    folds: Int[np.ndarray, "N"],
) -> Float64[np.ndarray, "c N k"]:
    """Returns the values of each photo, by each candidate fitted on the photos of the other folds.

    The intercept of a label grows with its share of the photos that a scorer is fitted on, which is
    the lower, the more photos of the held-out fold have the label. With few photos, values would
    therefore fall where the label fits. So the mean of all folds' intercepts replaces each of them.
    """
    values = np.zeros((len(candidates), *truth.shape))
    intercepts = np.zeros(values.shape)
    for fold in np.unique(folds):
        out = folds == fold
        for place, choices in enumerate(candidates):
            scorer = method.fit(features[~out], truth[~out], choices)
            values[place, out] = scorer.values(features[out])
            intercepts[place, out] = scorer.intercepts
    return values - intercepts + intercepts.mean(axis=1, keepdims=True)


def fit_sigmoid(values: Float64[np.ndarray, "N k"], truth: Bool[np.ndarray, "N k"]) -> Sigmoid:
    """Fits Platt's sigmoid to values of photos that the scorer was not fitted on.

    Its targets are smoothed (Platt 1999), so that no probability is 0 or 1 after a few photos. Its
    slope is at least `least_slope`, so that the probabilities keep the order of the values.
    """
    from scipy.optimize import brentq  # slow to import, and no prediction needs it
    from sklearn.linear_model import LogisticRegression

    targets = smoothed(truth).ravel()
    column = np.concatenate([values.ravel()] * 2)[:, None]
    spread = spread_of(values)
    classes = np.repeat([1, 0], targets.size)
    solver = LogisticRegression(C=np.inf, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    solver.fit(column / spread, classes, sample_weight=np.concatenate([targets, 1 - targets]))
    slope, least = float(solver.coef_[0, 0]) / spread, least_slope(values)
    if slope > least:
        return Sigmoid(slope, float(solver.intercept_[0]))
    # The likelihood is concave: with the slope bounded, its maximum is at the bound.
    share, logits = float(targets.mean()), least * values.ravel()
    ends = logit(share) - logits.max() - 1, logit(share) - logits.min() + 1
    return Sigmoid(least, float(brentq(lambda b: expit(logits + b).mean() - share, *ends)))


def least_slope(values: Float64[np.ndarray, "N k"]) -> float:
    """Returns the least slope of a sigmoid that is fitted to values."""
    return LEAST_STEEPNESS / spread_of(values)


def spread_of(values: Float64[np.ndarray, "N k"]) -> float:
    """Returns the standard deviation of all values together, or a tiny number if it is 0."""
    return max(float(values.std()), 1e-12)


def smoothed(truth: Bool[np.ndarray, "N k"]) -> Float64[np.ndarray, "N k"]:
    """Returns Platt's targets: (p + 1) / (p + 2) for p pairs of photo and label that fit, or less.

    It is 1 / (n + 2) for the n pairs that do not fit.
    """
    fits = int(truth.sum())
    return np.where(truth, (fits + 1) / (fits + 2), 1 / (truth.size - fits + 2))


def losses(
    sigmoid: Sigmoid, values: Float64[np.ndarray, "N k"], truth: Bool[np.ndarray, "N k"]
) -> Float64[np.ndarray, "N"]:
    """Returns the cross-entropy of each photo, summed over labels, in nats."""
    logits = sigmoid.slope * values + sigmoid.intercept
    return np.logaddexp(0, np.where(truth, -logits, logits)).sum(axis=1)


class Chosen(NamedTuple):
    """The candidate that out-of-fold values choose.

    Attributes:
        candidate: Its place.
        sigmoid: Its sigmoid, fitted on the same photos.
    """

    candidate: int
    sigmoid: Sigmoid


def choose_candidate(
    values: Float64[np.ndarray, "c N k"], truth: Bool[np.ndarray, "N k"]
) -> Chosen:
    """Returns the first candidate whose likelihood is within a standard error of the best."""
    sigmoids = [fit_sigmoid(one, truth) for one in values]
    if len(values) == 1:
        return Chosen(0, sigmoids[0])
    found = [losses(sigmoid, one, truth) for sigmoid, one in zip(sigmoids, values, strict=True)]
    best = first_of_the_best(np.stack(found))
    return Chosen(best, sigmoids[best])
