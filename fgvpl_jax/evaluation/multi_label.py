"""Scores of predictions with several labels a photo, and the thresholds of the labels."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

RESAMPLES = 1000  # of the bootstrap
BLOCK = 100  # resamples that are scored at once
# Half of the 95% interval in the bootstrap's standard deviations. Its own quantiles would be too
# high: a photo that is drawn twice makes a label's photos look better ranked than they are.
DEVIATIONS = 1.96
PLAIN_THRESHOLD = 0.5
# Number of a label's photos at which its own threshold counts as much as the threshold that suits
# all labels together: the best threshold of a few photos is chance.
PRIOR_PHOTOS = 10
FEWEST_OF_LABEL = 2  # a label with fewer photos takes the threshold of all labels together


class LabelScores(NamedTuple):
    """Scores of ranked photos and of assigned labels, as fractions.

    Attributes:
        mean_average_precision: Mean over the labels that some photo has of `average_precision`.
        interval: Its 95% interval, by the standard deviation of a bootstrap over photos.
        average_precision: For each label, mean precision over its photos, when photos are ranked
            by the label's probability; NaN for a label that no photo has.
        macro_f1: Mean over the same labels of F1, the harmonic mean of precision and recall.
        micro_f1: F1 of all pairs of photo and label together.
    """

    mean_average_precision: float
    interval: tuple[float, float]
    average_precision: Float64[np.ndarray, "k"]
    macro_f1: float
    micro_f1: float


def score_labels(
    probabilities: Float[np.ndarray, "N k"],
    truth: Bool[np.ndarray, "N k"],
    assigned: Bool[np.ndarray, "N k"],
    seed: int,
) -> LabelScores:
    """Returns the scores of predictions.

    Args:
        probabilities: Probability of every label.
        truth: The labels that the photos have.
        assigned: The labels that the classifier says they have.
        seed: Seed of the bootstrap.
    """
    each = average_precision(probabilities, truth, np.ones((1, len(truth))))[0]
    count = len(truth)
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, BLOCK):
        size = min(BLOCK, RESAMPLES - start)
        weights = rng.multinomial(count, np.full(count, 1 / count), size=size)
        means.append(mean_of_known(average_precision(probabilities, truth, weights)))
    mean = float(mean_of_known(each[None])[0])
    half = DEVIATIONS * float(np.concatenate(means).std())
    f1 = f1_scores(truth, assigned)
    known = truth.any(axis=0)
    pairs = f1_scores(truth.reshape(-1, 1), assigned.reshape(-1, 1))
    return LabelScores(
        mean,
        (max(mean - half, 0.0), min(mean + half, 1.0)),
        each,
        float(f1[known].mean()) if known.any() else 0.0,
        float(pairs[0]),
    )


def average_precision(
    scores: Float[np.ndarray, "N k"],
    truth: Bool[np.ndarray, "N k"],
    weights: Float[np.ndarray, "B N"] | Int[np.ndarray, "B N"],
) -> Float64[np.ndarray, "B k"]:
    """Returns the average precision of every label, for several weightings of the photos.

    It is the sum over different scores of precision times the gain in recall, like scikit-learn's,
    and NaN where all photos of a label have weight 0.
    """
    found = np.full((len(weights), scores.shape[1]), np.nan)
    for label in range(scores.shape[1]):
        order = np.argsort(-scores[:, label], kind="stable")
        ranked = scores[order, label]
        last = np.append(ranked[1:] != ranked[:-1], True)  # photos of one score are one step
        of_photo = weights[:, order].astype(np.float64)
        hits = np.cumsum(of_photo * truth[order, label], axis=1)[:, last]
        total = np.cumsum(of_photo, axis=1)[:, last]
        gains = np.diff(hits, axis=1, prepend=0.0)
        precision = hits / np.maximum(total, 1e-12)
        all_hits = hits[:, -1]
        has_photos = all_hits > 0
        found[has_photos, label] = (precision * gains).sum(axis=1)[has_photos]
        found[has_photos, label] /= all_hits[has_photos]
    return found


def mean_of_known(found: Float64[np.ndarray, "B k"]) -> Float64[np.ndarray, "B"]:
    """Returns the mean of each row over the labels that have photos; 0 without any."""
    known = ~np.isnan(found)
    return np.where(known, found, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def f1_scores(
    truth: Bool[np.ndarray, "N k"], assigned: Bool[np.ndarray, "N k"]
) -> Float64[np.ndarray, "k"]:
    """Returns F1 of every label; 0 where nothing is right."""
    right = (truth & assigned).sum(axis=0)
    return 2 * right / np.maximum(truth.sum(axis=0) + assigned.sum(axis=0), 1)


def chance_precision(truth: Bool[np.ndarray, "N k"]) -> float:
    """Returns the mean average precision of a random order: the mean share of a label's photos."""
    shares = truth.mean(axis=0)
    return float(shares[shares > 0].mean()) if truth.any() else 0.0


def label_thresholds(
    probabilities: Float64[np.ndarray, "N k"], truth: Bool[np.ndarray, "N k"]
) -> Float64[np.ndarray, "k"]:
    """Returns the probability from which each label is assigned, for the best F1.

    A label's best threshold is drawn towards the best threshold of all labels together, the more
    the fewer photos have the label.

    Args:
        probabilities: Probabilities of photos that the classifier was not fitted on.
        truth: The labels that the photos have.
    """
    if not truth.any():
        return np.full(truth.shape[1], PLAIN_THRESHOLD)
    together = best_threshold(probabilities.ravel(), truth.ravel())
    photos = truth.sum(axis=0)
    thresholds = np.full(truth.shape[1], together)
    for label in np.flatnonzero(photos >= FEWEST_OF_LABEL):
        own = best_threshold(probabilities[:, label], truth[:, label])
        weight = photos[label] / (photos[label] + PRIOR_PHOTOS)
        thresholds[label] = weight * own + (1 - weight) * together
    return thresholds


def best_threshold(probabilities: Float64[np.ndarray, "N"], truth: Bool[np.ndarray, "N"]) -> float:
    """Returns the threshold of the best F1, halfway between two probabilities."""
    order = np.argsort(-probabilities, kind="stable")
    ranked = probabilities[order]
    right = np.cumsum(truth[order])
    f1 = 2 * right / (np.arange(1, len(ranked) + 1) + right[-1])
    after = np.append(ranked[1:], 0.0)
    f1[ranked == after] = -1  # photos of one probability are assigned together
    best = int(f1.argmax())
    return float((ranked[best] + after[best]) / 2)
