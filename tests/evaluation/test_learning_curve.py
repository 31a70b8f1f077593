"""The learning curve: its training sets, its points against plain fits, its extrapolation."""

import numpy as np
import pytest

from fgvpl_jax.evaluation.learning_curve import (
    extrapolate,
    learning_curve,
    share_right,
    sizes_of,
    training_sets,
)
from fgvpl_jax.methods.gda import WEIGHT_STEPS
from tests.methods.checks import clustered, unit


def test_points_double_until_a_few_photos_are_left_to_hold_out():
    assert np.array(sizes_of(np.array([8, 8]), 20)).tolist() == [[1, 1], [2, 2], [4, 4], [7, 7]]
    assert np.array(sizes_of(np.array([5, 3, 1]), 20)).tolist() == [[1, 1, 1], [2, 2, 1], [4, 2, 1]]
    assert sizes_of(np.array([100, 0]), 20)[-1].tolist() == [95, 0]
    assert len(sizes_of(np.array([3, 3]), 20)) == 2  # too few to be extrapolated


def test_each_training_set_has_its_size_and_each_photo_is_held_out():
    labels = np.array([0] * 9 + [1] * 25 + [2])
    for size in sizes_of(np.bincount(labels), 20):
        sets = np.stack([*training_sets(labels, size, 20, seed=1)])
        for label, count in enumerate(size):
            assert (sets[:, labels == label].sum(axis=1) == count).all()
        assert not sets[:, labels < 2].all(axis=0).any()
        assert sets[:, labels == 2].all()


def test_a_point_is_the_accuracy_of_plain_fits():
    labels = np.repeat([0, 1, 2], 6)
    features = unit(clustered(labels) + 2 * np.random.default_rng(3).normal(size=(18, 16)))
    text = 5 * features[:, :3]
    size = np.full(3, 4)
    found = share_right(features, text, labels, size, 12, seed=0)
    right, times = np.zeros((len(WEIGHT_STEPS), 18)), np.zeros(18)
    for chosen in training_sets(labels, size, 12, seed=0):
        x, y = features[chosen], labels[chosen]
        means = np.stack([x[y == c].mean(axis=0) for c in range(3)])
        covariance = np.cov((x - means[y]).T)
        scatter = 11 * covariance + np.trace(covariance) * np.eye(16)
        kernel = np.linalg.solve(scatter, means.T)
        scores = features @ kernel - np.diag(means @ kernel) / 2
        for row, step in zip(right, WEIGHT_STEPS, strict=True):
            predicted = (text + 12 * 10 ** (step / 2) * scores).argmax(axis=1)
            row += (predicted == labels) & ~chosen
        times += ~chosen
    np.testing.assert_allclose(found, right / times)
    assert 0.2 < found.mean() < 0.95


@pytest.mark.parametrize(("a", "b", "c"), [(0.9, 0.6, 0.5), (0.95, 0.5, 0.3), (0.6, 0.02, 1.0)])
def test_the_interval_covers_the_truth_for_most_draws_of_a_known_curve(a, b, c):
    sizes, labels = np.array([1.0, 2, 4, 7]), np.repeat(np.arange(10), 8)

    def truth(n):
        return a - b * n**-c

    covered, gains = [], []
    for seed in range(40):
        difficulty = np.random.default_rng(seed).uniform(size=80)
        shares = (truth(sizes) > difficulty[:, None]).astype(float)
        curve = extrapolate(sizes, shares, labels, photos=8.0)
        low, high = curve.twice_interval
        covered.append(low <= truth(16) <= high)
        gains.append(curve.twice - curve.now)
    assert np.mean(covered) >= 0.8  # the interval's level is 0.9
    assert np.mean(gains) == pytest.approx(truth(16) - truth(8), abs=0.02)


def test_falling_and_perfect_curves_have_no_gain():
    labels = np.repeat(np.arange(4), 8)
    falling = np.ones((32, 4))
    falling[:20, 1] = falling[:24, 2] = falling[:, 3] = 0
    for shares in (falling, np.ones((32, 4))):
        curve = extrapolate(np.array([1.0, 2, 4, 7]), shares, labels, photos=8.0)
        assert curve.twice - curve.now < 0.02
        assert 0 <= curve.twice_interval[0] <= curve.twice <= curve.twice_interval[1] <= 1


def test_there_is_no_curve_from_fewer_than_four_photos_per_class():
    labels = np.repeat([0, 1], 3)
    features = unit(clustered(labels))
    assert learning_curve(features, np.zeros((6, 2)), labels, seed=1) is None
    labels = np.repeat([0, 1], 4)
    curve = learning_curve(unit(clustered(labels)), np.zeros((8, 2)), labels, seed=1)
    assert curve.photos_per_class == (1.0, 2.0, 3.0)
    labels = np.array([0] * 8 + [1, 2])  # nothing is known of most classes
    assert learning_curve(unit(clustered(labels)), np.zeros((10, 3)), labels, seed=1) is None
