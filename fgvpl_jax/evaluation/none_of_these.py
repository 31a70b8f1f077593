"""Fits the score of belonging to the known classes, and the threshold of "none of these"."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fgvpl_jax.defaults import FALSE_REJECTION_RATE
from fgvpl_jax.evaluation.metrics import share_interval
from fgvpl_jax.methods.gda import Statistics, ridge_of
from fgvpl_jax.recognition.known_classes import (
    KnownClasses,
    known_score,
    score_at,
    squared_distances,
)

FEWEST_HELD_OUT = 10  # scores that a threshold is set from


class NoneOfThese(NamedTuple):
    """The threshold of "none of these", and what it does to photos that were held out.

    Rates are fractions.

    Attributes:
        threshold: Score below which a photo counts as "none of these".
        false_rejection: Expected share of new photos of the classes below the threshold.
        false_rejection_interval: Ends of the 95% interval of that share.
        held_out_photos: Number of photos of the classes that the threshold was set from.
        left_out_caught: Share of these photos below the threshold if their class is not known;
            None without photos from folds.
        other_photos: Number of photos of other things.
        other_caught: Share of these below the threshold, each scored without its fold; None
            without any.
        other_caught_interval: Ends of the 95% Wilson interval of that share.
    """

    threshold: float
    false_rejection: float
    false_rejection_interval: tuple[float, float]
    held_out_photos: int
    left_out_caught: float | None
    other_photos: int
    other_caught: float | None
    other_caught_interval: tuple[float, float] | None


class Photos(NamedTuple):
    """Unit features of photos, with their classes and folds.

    Attributes:
        features: Unit vectors of frozen CLIP.
        labels: True classes; any number for photos of other things.
        folds: Folds, which hold out copies of a photo together with it.
    """

    features: Float[np.ndarray, "N e"]
    labels: Int[np.ndarray, "N"]
    folds: Int[np.ndarray, "N"]


class HeldOutScores(NamedTuple):
    """Scores of photos by fits without their fold.

    Attributes:
        known: Scores of support images that have a companion of their class outside the fold.
        left_out: Scores of the same images without the mean of their class.
        other: Scores of the photos of other things.
    """

    known: Float[np.ndarray, "n"]
    left_out: Float[np.ndarray, "n"]
    other: Float[np.ndarray, "o"]


def fit_known_classes(
    features: Float[np.ndarray, "N e"],
    labels: Int[np.ndarray, "N"],
    other: Float[np.ndarray, "o e"],
) -> KnownClasses:
    """Returns class means and other photos, whitened by the covariance of `methods.gda` with τ = 1.

    No score is below its threshold.

    Args:
        features: Unit vectors of the support images.
        labels: Classes of the support images.
        other: Unit vectors of photos of other things.
    """
    _, places = np.unique(labels, return_inverse=True)
    statistics = Statistics.of(features[:, None], places, int(places.max()) + 1)
    ridge = ridge_of(1.0, statistics.trace, len(features))
    # Squared distances are means over the dimensions, so that they do not grow with them.
    scale = np.sqrt(max(len(features) - 1, 1) / features.shape[1])
    whitening = scale * statistics.eigenvectors / np.sqrt(statistics.eigenvalues + ridge)
    centre = features.mean(axis=0)
    arrays = (centre, whitening, (statistics.means - centre) @ whitening)
    return KnownClasses(*arrays, (other - centre) @ whitening, np.array(-np.inf))


def held_out_scores(support: Photos, other: Photos) -> HeldOutScores:
    """Returns scores of all photos, each by a fit without the photos of its fold."""
    known, left_out, strange = [], [], []
    for fold in np.unique(np.concatenate([support.folds, other.folds])):
        rest, other_rest = support.folds != fold, other.folds != fold
        if not rest.any():
            continue
        classes = np.unique(support.labels[rest])
        fit = fit_known_classes(
            support.features[rest], support.labels[rest], other.features[other_rest]
        )
        judged = ~rest & np.isin(support.labels, classes)
        known.append(known_score(fit, support.features[judged]))
        strange.append(known_score(fit, other.features[~other_rest]))
        own = np.searchsorted(classes, support.labels[judged])
        left_out.append(scores_without(fit, support.features[judged], own))
    return HeldOutScores(*(np.concatenate([np.zeros(0), *x]) for x in (known, left_out, strange)))


def scores_without(
    known: KnownClasses, features: Float[np.ndarray, "n e"], own: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Returns the score of each photo if one class, its own, is not known."""
    points = (features - known.centre) @ known.whitening
    distances = squared_distances(points, known.class_means)
    distances[np.arange(len(own)), own] = np.inf
    return np.asarray(score_at(known, points, distances.min(axis=1)))


def set_threshold(scores: HeldOutScores, validation: Float[np.ndarray, "v"]) -> NoneOfThese | None:
    """Sets the threshold from held-out scores; None with fewer than ten of known photos.

    The threshold is the r-th smallest of n scores, with r the whole part of 0.05 (n + 1), at least
    1. The share of new photos below it then has the distribution Beta(r, n + 1 - r), if photos are
    drawn independently from the same source, whatever the distribution of their scores.

    Args:
        scores: Scores of support images and photos of other things.
        validation: Scores of the validation images by the fit to all support images.
    """
    from scipy.stats import beta  # slow to import, and no prediction needs it

    known = np.sort(np.concatenate([scores.known, validation]))
    if len(known) < FEWEST_HELD_OUT:
        return None
    rank = max(1, int(FALSE_REJECTION_RATE * (len(known) + 1)))
    threshold = float(known[rank - 1])
    share = beta(rank, len(known) + 1 - rank)
    caught = int((scores.other < threshold).sum())
    has_other = len(scores.other) > 0
    return NoneOfThese(
        threshold=threshold,
        false_rejection=float(share.mean()),
        false_rejection_interval=(float(share.ppf(0.025)), float(share.ppf(0.975))),
        held_out_photos=len(known),
        left_out_caught=float((scores.left_out < threshold).mean()) if len(scores.known) else None,
        other_photos=len(scores.other),
        other_caught=caught / len(scores.other) if has_other else None,
        other_caught_interval=share_interval(caught, len(scores.other)) if has_other else None,
    )
