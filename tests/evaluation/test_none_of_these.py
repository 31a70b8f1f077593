"""The threshold of "none of these": what it is fitted on, and the rates it promises."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import binom

from fgvpl_jax.evaluation.none_of_these import (
    HeldOutScores,
    Photos,
    fit_known_classes,
    held_out_scores,
    scores_without,
    set_threshold,
)
from fgvpl_jax.recognition import known_score

NOTHING = np.empty(0)


def drawn(rng, count, classes=3, dim=6):
    """Returns unit vectors around a mean of each class, and their labels."""
    labels = np.repeat(np.arange(classes), count)
    means = 2 * np.random.default_rng(0).normal(size=(classes, dim))
    features = means[labels] + rng.normal(size=(len(labels), dim))
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


@pytest.fixture
def support():
    return drawn(np.random.default_rng(1), 8)


def test_distances_are_those_of_the_shrunk_shared_covariance(support):
    features, labels = support
    known = fit_known_classes(features, labels, features[:0])
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    scatter = (features - means[labels]).T @ (features - means[labels])
    dof, dim = len(features) - 1, features.shape[1]
    inverse = np.linalg.inv((scatter + np.trace(scatter) / dof * np.eye(dim)) / dof)
    queries, _ = drawn(np.random.default_rng(2), 4)
    expected = [-min(mahalanobis(q, mean, inverse) ** 2 for mean in means) / dim for q in queries]
    np.testing.assert_allclose(known_score(known, queries), expected, rtol=1e-8)
    without = fit_known_classes(features[labels != 1], labels[labels != 1], features[:0])
    assert len(without.class_means) == 2  # a class without an image has no mean


def test_held_out_scores_are_those_of_fits_without_the_fold(support):
    features, labels = support
    other = drawn(np.random.default_rng(3), 2)[0]
    folds, other_folds = np.arange(24) % 4, np.arange(6) % 4
    found = held_out_scores(
        Photos(features, labels, folds), Photos(other, np.zeros(6, int), other_folds)
    )
    known, strange, left_out = [], [], []
    for fold in range(4):
        rest = folds != fold
        fit = fit_known_classes(features[rest], labels[rest], other[other_folds != fold])
        known += known_score(fit, features[~rest]).tolist()
        strange += known_score(fit, other[other_folds == fold]).tolist()
        for feature, label in zip(features[~rest], labels[~rest], strict=True):
            fewer = fit._replace(class_means=np.delete(fit.class_means, label, axis=0))
            left_out += known_score(fewer, feature[None]).tolist()
    np.testing.assert_allclose(found.known, known)
    np.testing.assert_allclose(found.other, strange)
    np.testing.assert_allclose(found.left_out, left_out)


def test_an_image_without_a_companion_outside_its_fold_is_not_scored(support):
    features, labels = support
    folds = np.where(labels == 2, 0, np.arange(24) % 4)  # such as copies of one photo
    nothing = Photos(features[:0], labels[:0], labels[:0])
    assert len(held_out_scores(Photos(features, labels, folds), nothing).known) == 16
    one_each = Photos(features[::8], labels[::8], np.arange(3))
    assert not len(held_out_scores(one_each, nothing).known)
    alone = fit_known_classes(features[:1], labels[:1], features[:0])
    assert scores_without(alone, features[:1], np.zeros(1, int)) == [-np.inf]


def test_the_threshold_is_an_order_statistic_with_its_beta_interval():
    scores = np.random.default_rng(0).normal(size=99)
    found = set_threshold(HeldOutScores(scores[:60], scores[:60] - 9, NOTHING), scores[60:])
    assert found.threshold == np.sort(scores)[4]
    assert found.false_rejection == pytest.approx(0.05)
    low, high = found.false_rejection_interval
    # At least 5 of 99 photos are below the threshold, as seen from the binomial distribution.
    assert binom.sf(4, 99, low) == pytest.approx(0.025)
    assert binom.sf(4, 99, high) == pytest.approx(0.975)
    assert found.left_out_caught == 1
    assert (found.other_photos, found.other_caught, found.other_caught_interval) == (0, None, None)


def test_the_share_of_new_photos_is_within_the_interval_in_95_of_100_draws():
    rng, right = np.random.default_rng(0), []
    for _ in range(400):
        scores = rng.exponential(size=50)
        found = set_threshold(HeldOutScores(scores, scores, NOTHING), NOTHING)
        low, high = found.false_rejection_interval
        right.append(low <= 1 - np.exp(-found.threshold) <= high)
    assert 0.92 < np.mean(right) < 0.98


def test_too_few_photos_set_no_threshold():
    scores = np.arange(9.0)
    assert set_threshold(HeldOutScores(scores, scores, NOTHING), NOTHING) is None
    found = set_threshold(HeldOutScores(NOTHING, NOTHING, np.array([-1.0, 3.0])), np.arange(10.0))
    assert (found.threshold, found.held_out_photos, found.left_out_caught) == (0.0, 10, None)
    assert found.false_rejection == pytest.approx(1 / 11)
    assert (found.other_photos, found.other_caught) == (2, 0.5)
