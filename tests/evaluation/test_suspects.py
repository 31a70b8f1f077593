"""Wrong labels, outliers and confusions, from out-of-fold predictions."""

import numpy as np
import pytest

from fgvpl_jax.evaluation.suspects import (
    OutOfFold,
    confusions,
    out_of_fold,
    outliers,
    suspect_labels,
)


def drawn(count=30, classes=3, dim=6):
    """Returns unit vectors around a mean of each class, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), count)
    features = (4 * rng.normal(size=(classes, dim)))[labels] + rng.normal(size=(len(labels), dim))
    return features / np.linalg.norm(features, axis=1, keepdims=True), labels


def test_changed_labels_are_found_and_the_most_certain_comes_first():
    features, labels = drawn()
    given = labels.copy()
    given[[0, 40, 80]] = 2, 0, 1
    found = out_of_fold(features, np.zeros((90, 3)), given, np.arange(90) % 10)
    assert found.is_judged.all()
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    suspects = suspect_labels(found, given)
    assert {0, 40, 80} <= set(suspects.tolist())
    assert len(suspects) <= 6
    margins = found.probabilities.max(axis=1) - found.probabilities[np.arange(90), given]
    assert (np.diff(margins[suspects]) <= 0).all()


def test_the_rule_is_that_of_confident_learning():
    """The example is small enough to be read: class 1 is usually given 0.7."""
    probabilities = np.array([[0.9, 0.1], [0.25, 0.75], [0.4, 0.6], [0.2, 0.8], [0.4, 0.6]])
    found = OutOfFold(probabilities, -np.ones(5), np.ones(5, bool))
    assert suspect_labels(found, np.array([0, 0, 0, 1, 1])).tolist() == [1]
    unjudged = found._replace(is_judged=np.array([True, False, True, True, True]))
    assert suspect_labels(unjudged, np.array([0, 0, 0, 1, 1])).tolist() == []
    assert confusions(found, np.array([0, 0, 0, 1, 0])) == [(0, 1, 3)]


def test_a_stranger_is_the_first_outlier():
    features, labels = drawn()
    stranger = -features[:30].mean(axis=0)
    features = np.concatenate([features, [stranger / np.linalg.norm(stranger)]])
    labels = np.append(labels, 0)
    found = out_of_fold(features, np.zeros((91, 3)), labels, np.arange(91) % 10)
    assert outliers(found)[0] == 90


@pytest.mark.parametrize("labels", [[0, 1], [0, 0]])
def test_photos_without_companions_are_not_judged(labels):
    features, _ = drawn()
    found = out_of_fold(features[:2], np.zeros((2, 2)), np.array(labels), np.zeros(2, int))
    assert not found.is_judged.any()
    for places in (outliers(found), suspect_labels(found, np.array(labels))):
        assert not len(places)
    assert confusions(found, np.array(labels)) == []
