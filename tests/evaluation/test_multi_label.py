"""Average precision, F1 and thresholds, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from fgvpl_jax.evaluation.multi_label import (
    average_precision,
    best_threshold,
    chance_precision,
    f1_scores,
    label_thresholds,
    score_labels,
)


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    truth = rng.random((80, 5)) < 0.25
    # Rounded, so that photos share scores.
    return np.round(np.clip(0.3 * truth + 0.7 * rng.random(truth.shape), 0, 1), 1), truth


def test_average_precision_is_that_of_scikit_learn(predictions):
    scores, truth = predictions
    rng = np.random.default_rng(1)
    weights = np.stack([np.ones(80), *rng.multinomial(80, np.full(80, 1 / 80), size=4)])
    found = average_precision(scores, truth, weights)
    expected = [
        [average_precision_score(truth[:, c], scores[:, c], sample_weight=w) for c in range(5)]
        for w in weights
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_label_without_photos_has_no_average_precision(predictions):
    scores, truth = predictions
    truth = truth.copy()
    truth[:, 2] = False
    found = score_labels(scores, truth, scores > 0.5, seed=1)
    assert np.isnan(found.average_precision).tolist() == [False, False, True, False, False]
    known = [0, 1, 3, 4]
    expected = average_precision_score(truth[:, known], scores[:, known])
    assert found.mean_average_precision == pytest.approx(expected)
    assert found.macro_f1 == pytest.approx(
        f1_score(truth[:, known], scores[:, known] > 0.5, average="macro")
    )
    assert found.micro_f1 == pytest.approx(f1_score(truth, scores > 0.5, average="micro"))


def test_the_interval_is_about_that_of_repeated_draws(predictions):
    """The bootstrap's width is compared with that of new photos of the same distribution."""
    rng = np.random.default_rng(3)

    def draw():
        truth = rng.random((300, 5)) < 0.25
        return 0.3 * truth + 0.7 * rng.random(truth.shape), truth

    scores, truth = draw()
    low, high = score_labels(scores, truth, truth, seed=1).interval
    means = [average_precision_score(t, s) for s, t in (draw() for _ in range(200))]
    assert high - low == pytest.approx(np.ptp(np.quantile(means, [0.025, 0.975])), rel=0.25)
    assert score_labels(scores, truth, truth, seed=1).interval == (low, high)


def test_scores_without_any_label_are_zero():
    truth = np.zeros((4, 2), bool)
    found = score_labels(np.ones((4, 2)), truth, truth, seed=1)
    assert (found.mean_average_precision, found.macro_f1, found.micro_f1) == (0, 0, 0)
    assert chance_precision(truth) == 0


def test_chance_is_the_precision_of_random_orders(predictions):
    _, truth = predictions
    rng = np.random.default_rng(2)
    random = [average_precision_score(truth, rng.random(truth.shape)) for _ in range(300)]
    # The mean over orders of few photos is a little above the share of a label's photos.
    assert chance_precision(truth) == pytest.approx(np.mean(random), abs=0.04)


def test_best_threshold_is_the_best_of_all(predictions):
    scores, truth = predictions
    for label in range(5):
        found = best_threshold(scores[:, label], truth[:, label])
        reached = f1_score(truth[:, label], scores[:, label] >= found)
        every = [f1_score(truth[:, label], scores[:, label] >= t) for t in np.unique(scores)]
        assert reached == pytest.approx(max(every))


def test_thresholds_of_rare_labels_are_near_that_of_all_labels(predictions):
    scores, truth = predictions
    together = best_threshold(scores.ravel(), truth.ravel())
    truth = truth.copy()
    truth[1:, 0] = False  # at most one photo
    rare = truth[:, 1] & (np.cumsum(truth[:, 1]) <= 2)
    truth[:, 1] = rare
    together = best_threshold(scores.ravel(), truth.ravel())
    found = label_thresholds(scores, truth)
    assert found[0] == together
    own = best_threshold(scores[:, 1], truth[:, 1])
    assert found[1] == pytest.approx((2 * own + 10 * together) / 12)
    assert label_thresholds(scores, np.zeros_like(truth)).tolist() == [0.5] * 5


def test_f1_of_nothing_right_is_zero():
    truth = np.array([[True], [False]])
    assert f1_scores(truth, ~truth).tolist() == [0]
