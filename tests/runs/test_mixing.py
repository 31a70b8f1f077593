"""The choice among methods by held-out photos, compared with scipy's optimum."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from fgvpl_jax.runs.mixing import (
    choose_mix,
    held_out_scores,
    judging_folds,
    likeliest_weights,
    out_of_fold_log_probabilities,
)

COUNT, CLASSES = 120, 4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def photos(rng, *strengths):
    """Returns logits of methods that are right more often the larger their strength, and labels."""
    labels = np.arange(COUNT) % CLASSES
    truth = np.eye(CLASSES)[labels]
    noise = rng.normal(size=(len(strengths), COUNT, CLASSES))
    logits = noise + np.array(strengths)[:, None, None] * truth
    return logits.astype(np.float32), labels, np.arange(COUNT) // CLASSES % 4


@pytest.mark.parametrize("prior", [0.0, 30.0])
def test_weights_are_those_of_a_general_optimiser(rng, prior):
    true = np.log(rng.uniform(0.05, 1, size=(3, 200)))
    counts = np.array([0, prior, 0])
    found = minimize(
        lambda x: -np.log(softmax(x) @ np.exp(true)).sum() - counts @ log_softmax(x),
        np.zeros(3),
        method="Nelder-Mead",
    )
    np.testing.assert_allclose(likeliest_weights(true, counts), softmax(found.x), atol=5e-3)


def test_the_favourite_of_equal_methods_gets_the_weight(rng):
    logits, labels, folds = photos(rng, 1.0)
    mix = choose_mix(np.concatenate([logits] * 3), labels, folds, 1)
    assert mix.weights.tolist() == [0, 1, 0]


def test_a_clearly_better_method_is_kept_alone(rng):
    logits, labels, folds = photos(rng, 0.2, 4.0, 0.5)
    mix = choose_mix(logits, labels, folds, None)
    assert mix.weights.tolist() == [0, 1, 0]
    assert mix.losses.argmin() == 1
    # A scale of the logits does not matter.
    scaled = choose_mix(100 * logits, labels, folds, None)
    np.testing.assert_allclose(scaled.losses, mix.losses, atol=1e-4)
    expected = log_softmax(logits[1] / mix.temperatures[1], axis=1)
    np.testing.assert_allclose(mix.log_probabilities(logits), expected, atol=1e-6)


def test_methods_that_complement_each_other_are_mixed(rng):
    logits, labels, folds = photos(rng, 0.0, 0.0, 0.0)
    for half in (0, 1):  # each method knows the classes of half of the photos
        logits[half, half::2] += 8 * np.eye(CLASSES)[labels[half::2]]
    mix = choose_mix(logits, labels, folds, None)
    assert mix.gain > mix.gain_error > 0
    assert (mix.weights[:2] > 0.3).all()
    parts = softmax(logits.astype(float) / mix.temperatures[:, None, None], axis=2)
    expected = np.einsum("c,cnk->nk", mix.weights, parts)
    np.testing.assert_allclose(np.exp(mix.log_probabilities(logits)), expected, atol=1e-6)


def test_a_photo_has_no_say_in_its_own_estimate(rng):
    logits, labels, folds = photos(rng, 1.0, 0.9, 1.1)
    before = out_of_fold_log_probabilities(logits, labels, folds, None)
    out = folds == 2
    changed = np.where(out, (labels + 1) % CLASSES, labels)
    after = out_of_fold_log_probabilities(logits, changed, folds, None)
    np.testing.assert_array_equal(after[out], before[out])
    assert (after[~out] != before[~out]).any()


def test_the_estimate_is_not_flattered_by_choosing_among_guesses(rng):
    labels = np.arange(COUNT) % CLASSES
    logits = 5 * rng.normal(size=(30, COUNT, CLASSES)).astype(np.float32)
    best = max(held_out_scores(one, labels)[1] for one in logits)
    nested = out_of_fold_log_probabilities(logits, labels, np.arange(COUNT) // CLASSES % 4, None)
    right = (nested.argmax(axis=1) == labels).mean()
    assert best > 0.3  # the best of thirty guesses seems better than chance, which is 0.25
    assert right < 0.3


def test_of_two_folds_each_is_judged_on_halves_of_the_other(rng):
    logits, labels, folds = photos(rng, 1.0, 0.9, 1.1)
    one = folds == 0
    halves = judging_folds(labels[one], folds[one])
    for label in range(CLASSES):
        assert abs(np.diff(np.bincount(halves[labels[one] == label]))) <= 1
    mix = choose_mix(logits[:, one], labels[one], folds[one], None)
    expected = choose_mix(logits[:, one], labels[one], halves, None)
    assert mix.gain == expected.gain != 0


def test_one_fold_and_one_method_are_enough(rng):
    logits, labels, _ = photos(rng, 1.0)
    mix = choose_mix(logits, labels, np.zeros(COUNT, int), None)
    assert mix.weights.tolist() == [1]
    assert mix.gain == 0
