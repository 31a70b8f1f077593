"""Finds photos that are probably mislabelled, and outliers, from out-of-fold predictions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from fgvpl_jax.evaluation.calibration import helpful_temperature
from fgvpl_jax.evaluation.metrics import log_softmax
from fgvpl_jax.evaluation.none_of_these import fit_known_classes
from fgvpl_jax.methods.gda import Statistics
from fgvpl_jax.recognition import known_score

FEWEST_PHOTOS = 10  # that a temperature is fitted on
OUTLIER_DEVIATIONS = 2.0


class OutOfFold(NamedTuple):
    """Predictions of photos by fits without their fold.

    Attributes:
        probabilities: Calibrated probabilities of a quick classifier, GDA with zero-shot CLIP.
        scores: See `known_score`.
        is_judged: Whether a photo has a companion of its class outside its fold; the predictions of
            the others mean nothing.
    """

    probabilities: Float[np.ndarray, "N k"]
    scores: Float[np.ndarray, "N"]
    is_judged: Bool[np.ndarray, "N"]


def out_of_fold(
    features: Float[np.ndarray, "N e"],
    zero_shot_logits: Float[np.ndarray, "N k"],
    labels: Int[np.ndarray, "N"],
    folds: Int[np.ndarray, "N"],
) -> OutOfFold:
    """Predicts each photo by a fit without its fold.

    Args:
        features: Unit vectors of frozen CLIP.
        zero_shot_logits: Zero-shot CLIP's logits.
        labels: The given classes.
        folds: Folds, which hold out copies of a photo together with it.
    """
    num_classes = zero_shot_logits.shape[1]
    logits, scores = zero_shot_logits.copy(), np.zeros(len(labels))
    is_judged = np.zeros(len(labels), np.bool_)
    for fold in np.unique(folds):
        out = folds == fold
        rest = ~out
        if not rest.any():
            continue
        statistics = Statistics.of(features[rest][:, None], labels[rest], num_classes)
        kernel, bias = statistics.classifier(ridge=1.0)
        weight = rest.sum() / features.shape[1]
        logits[out] += weight * (features[out] @ kernel + bias)
        known = fit_known_classes(features[rest], labels[rest], features[:0])
        scores[out] = known_score(known, features[out])
        is_judged[out] = np.isin(labels[out], labels[rest])
    temperature = 1.0
    if is_judged.sum() >= FEWEST_PHOTOS:
        temperature = helpful_temperature(logits[is_judged], labels[is_judged])
    return OutOfFold(np.exp(log_softmax(logits / temperature)), scores, is_judged)


def suspect_labels(found: OutOfFold, labels: Int[np.ndarray, "N"]) -> Int[np.ndarray, "m"]:
    """Returns the places of photos that are probably mislabelled, the most certain first.

    This is the rule of confident learning (Northcutt, Jiang and Chuang 2021): another class is the
    most probable one, and its probability is at least the mean over the photos that are labelled
    with it.

    Args:
        found: Predictions.
        labels: The given classes.
    """
    probabilities = found.probabilities
    usual = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels[found.is_judged]):
        usual[label] = probabilities[found.is_judged & (labels == label), label].mean()
    best = probabilities.argmax(axis=1)
    rows = np.arange(len(labels))
    certain = probabilities[rows, best] >= usual[best]
    margin = probabilities[rows, best] - probabilities[rows, labels]
    places = np.flatnonzero(found.is_judged & (best != labels) & certain)
    return places[np.argsort(-margin[places], kind="stable")]


def outliers(found: OutOfFold) -> Int[np.ndarray, "m"]:
    """Returns the places of photos unlike all classes, the strangest first.

    The logarithm of the distance to the closest class mean is more than two deviations above the
    median; median and median deviation are those of most photos, whatever a few outliers are.
    """
    if not found.is_judged.any():
        return np.empty(0, np.int64)
    distance = np.log(np.maximum(-found.scores, 1e-12))
    usual = distance[found.is_judged]
    middle = np.median(usual)
    spread = 1.4826 * np.median(np.abs(usual - middle))
    far = distance > middle + OUTLIER_DEVIATIONS * spread
    places = np.flatnonzero(found.is_judged & far)
    return places[np.argsort(found.scores[places], kind="stable")]


def confusions(found: OutOfFold, labels: Int[np.ndarray, "N"]) -> list[tuple[int, int, int]]:
    """Returns (given class, predicted class, number of photos), the most frequent first."""
    judged = found.is_judged
    best = found.probabilities.argmax(axis=1)
    table = np.zeros((found.probabilities.shape[1],) * 2, np.int64)
    np.add.at(table, (labels[judged], best[judged]), 1)
    np.fill_diagonal(table, 0)
    pairs = [(int(a), int(b), int(table[a, b])) for a, b in np.argwhere(table)]
    return sorted(pairs, key=lambda pair: -pair[2])
