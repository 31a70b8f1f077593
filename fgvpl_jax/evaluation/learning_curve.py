"""Measures how accuracy grows with the number of photos, and extrapolates to twice as many."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from fgvpl_jax.methods.gda import WEIGHT_STEPS, Statistics

FEWEST_POINTS = 3  # of a curve that is extrapolated
MOST_FITS = 20  # classifiers per point
FEWEST_FITS = 4
# With more photos, a point needs fewer fits for the same precision.
PHOTOS_PREDICTED = 20_000
# Exponents of the power law; 0.1 is nearly a straight line over the logarithm of the photos.
EXPONENTS = np.linspace(0.1, 0.8, 8)
MISFIT = 0.02  # standard deviation of a point from the power law
DRAWS = 1000
CONFIDENCE = 0.9


class LearningCurve(NamedTuple):
    """Accuracy on held-out photos by the number of training photos, and its extrapolation.

    Accuracies are fractions. They are those of a quick classifier on frozen features.

    Attributes:
        photos_per_class: Mean number of training photos per class at each point, ascending.
        accuracies: Accuracy on the photos that were held out at each point.
        photos: Mean number of photos per class that there are.
        now: Estimated accuracy with all photos.
        twice: Estimated accuracy with twice as many photos per class.
        twice_interval: Lower and upper end of the 90% interval of `twice`.
    """

    photos_per_class: tuple[float, ...]
    accuracies: tuple[float, ...]
    photos: float
    now: float
    twice: float
    twice_interval: tuple[float, float]


def learning_curve(
    features: Float[np.ndarray, "N e"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    seed: int,
) -> LearningCurve | None:
    """Returns the learning curve of GDA on the support images; None with too few of them.

    It is also None if most classes have one photo, because nothing is known of their accuracy.

    A point is the mean over several fits to different photos. Each fit predicts all photos that it
    was not fitted to. Classes count in proportion to their photos. GDA's α is the one that is best
    over all points.

    Args:
        features: Unit vectors of the images under the evaluation transform.
        zero_shot_logits: Zero-shot CLIP's logits of the same images.
        labels: True classes.
        seed: Seed of the choice of training sets.
    """
    counts = np.bincount(labels, minlength=zero_shot_logits.shape[1])
    num_fits = int(np.clip(PHOTOS_PREDICTED // len(labels), FEWEST_FITS, MOST_FITS))
    sizes = sizes_of(counts, num_fits)
    if len(sizes) < FEWEST_POINTS or 2 * (counts > 1).sum() < (counts > 0).sum():
        return None
    *_, basis = np.linalg.svd(features, full_matrices=False)
    reduced = features @ basis.T  # as many numbers as there are photos, if those are fewer
    shares = np.stack(
        [share_right(reduced, zero_shot_logits, labels, s, num_fits, seed) for s in sizes], axis=2
    )
    shares = shares[shares.mean(axis=(1, 2)).argmax()]  # those of the best α
    known, present = counts[labels] > 1, counts > 0
    means = np.array([size[present].mean() for size in sizes])
    return extrapolate(means, shares[known], labels[known], float(counts[present].mean()))


def sizes_of(counts: Int[np.ndarray, "k"], num_fits: int) -> list[Int[np.ndarray, "k"]]:
    """Returns each point's number of training photos of every class: 1, 2, 4, … or all but few.

    Enough photos stay held out that the fits of a point hold out each photo at least once. The only
    photo of a class is always trained on.
    """
    most = np.maximum(counts - -(-counts // num_fits), np.minimum(counts, 1))
    steps = [2**i for i in range(int(most.max()).bit_length())]
    sizes = [np.minimum(step, most) for step in (*steps, int(most.max()))]
    return [size for i, size in enumerate(sizes) if i == 0 or (size != sizes[i - 1]).any()]


def share_right(
    features: Float[np.ndarray, "N e"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    size: Int[np.ndarray, "k"],
    num_fits: int,
    seed: int,
) -> Float64[np.ndarray, "a N"]:
    """Returns how often each photo was predicted correctly when held out, for each α.

    Args:
        features: Unit vectors.
        zero_shot_logits: Zero-shot CLIP's logits.
        labels: True classes.
        size: Number of training photos of each class.
        num_fits: Number of training sets.
        seed: Seed of the choice of training sets.
    """
    right = np.zeros((len(WEIGHT_STEPS), len(labels)))
    times = np.zeros(len(labels))
    for is_trained_on in training_sets(labels, size, num_fits, seed):
        out = ~is_trained_on
        train, dim = features[is_trained_on], features.shape[1]
        statistics = Statistics.of(train[:, None], labels[is_trained_on], len(size))
        kernel, bias = statistics.classifier(ridge=1.0)
        scores = (features[out] @ kernel + bias) * len(train) / dim
        for row, step in zip(right, WEIGHT_STEPS, strict=True):
            logits = zero_shot_logits[out] + 10.0 ** (step / 2) * scores
            row[out] += logits.argmax(axis=1) == labels[out]
        times[out] += 1
    return right / np.maximum(times, 1)


def training_sets(
    labels: Int[np.ndarray, "N"], size: Int[np.ndarray, "k"], num_fits: int, seed: int
) -> Iterator[Bool[np.ndarray, "N"]]:
    """Yields which photos each training set has: of each class a window that moves over a circle.

    Every photo is therefore held out about equally often.
    """
    rng = np.random.default_rng((seed, int(size.max())))
    circles = [rng.permutation(np.flatnonzero(labels == c)) for c in range(len(size))]
    for fit in range(num_fits):
        chosen = np.zeros(len(labels), np.bool_)
        for circle, count in zip(circles, size, strict=True):
            chosen[np.roll(circle, -(fit * len(circle) // num_fits))[:count]] = True
        yield chosen


def extrapolate(
    means: Float[np.ndarray, "p"],
    shares: Float[np.ndarray, "N p"],
    labels: Int[np.ndarray, "N"],
    photos: float,
) -> LearningCurve:
    """Fits accuracy(n) = a - b n^-c with b at least 0, and extends it to twice the photos.

    Curves that other photos might have given are drawn from a normal distribution with the
    covariance of the points. Points are correlated, because all of them judge the same photos. For
    each drawn curve and each exponent c, a and b are fitted by least squares and varied by the
    errors of that fit. The exponents are weighted by how well they fit.

    Args:
        means: Photos per class at each point.
        shares: Share of the fits that predict each held-out photo correctly, at each point.
        labels: True classes; each with at least two photos.
        photos: Photos per class that there are.
    """
    accuracies = shares.mean(axis=0)
    rng = np.random.default_rng(0)
    drawn = rng.multivariate_normal(accuracies, covariance_of_mean(shares, labels), DRAWS)
    ends, weights = [], []
    for exponent in EXPONENTS:
        design = np.stack([np.ones(len(means)), -(means**-exponent)], axis=1)
        spread = np.linalg.inv(design.T @ design)
        fitted = drawn @ design @ spread
        misfit = ((drawn - fitted @ design.T) ** 2).sum(axis=1)
        fitted += rng.multivariate_normal([0, 0], MISFIT**2 * spread, DRAWS)
        at = np.array([photos, 2 * photos]) ** -exponent
        ends.append(fitted[:, :1] - fitted[:, 1:] * at)
        weights.append(np.exp(-misfit / (2 * MISFIT**2)) * (fitted[:, 1] >= 0))
    now, twice = np.clip(np.concatenate(ends), 0, 1).T
    weight = np.concatenate(weights)
    if not weight.any():  # the accuracy falls, which no such curve does
        now = twice = np.clip(drawn.mean(axis=1), 0, 1)
        weight = np.ones(DRAWS)

    def quantiles(values: Float[np.ndarray, "d"]) -> list[float]:
        tails = [(1 - CONFIDENCE) / 2, 0.5, (1 + CONFIDENCE) / 2]
        found = np.quantile(values, tails, weights=weight, method="inverted_cdf")
        return [float(value) for value in found]

    low, middle, high = quantiles(twice)
    return LearningCurve(
        photos_per_class=tuple(means.tolist()),
        accuracies=tuple(accuracies.tolist()),
        photos=photos,
        now=quantiles(now)[1],
        twice=middle,
        twice_interval=(low, high),
    )


def covariance_of_mean(
    shares: Float[np.ndarray, "N p"], labels: Int[np.ndarray, "N"]
) -> Float64[np.ndarray, "p p"]:
    """Returns the covariance of the mean over photos, for photos drawn from the same classes.

    The variance of one more photo is added to each point, because a few photos may all agree by
    chance.
    """
    classes, places = np.unique(labels, return_inverse=True)
    means = np.stack([shares[places == i].mean(axis=0) for i in range(len(classes))])
    counts = np.bincount(places)[places]
    deviations = (shares - means[places]) * np.sqrt(counts / (counts - 1))[:, None]
    total = deviations.T @ deviations + np.eye(shares.shape[1])
    return total / len(shares) ** 2
