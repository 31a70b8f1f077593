"""Fitting recovers a known temperature, stays cautious with few images, and does no harm."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import helpful_temperature, score
from fgvpl_jax.evaluation.calibration import fit_temperature
from fgvpl_jax.evaluation.metrics import log_softmax
from fgvpl_jax.methods.held_out import TEMPERATURES


def drawn(count, num_classes, seed, scale=2.0):
    """Returns logits and labels that are drawn from their softmax: the best temperature is 1."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=scale, size=(count, num_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(true):
    """Labels are drawn from softmax(logits); the model returns logits · true."""
    logits, labels = drawn(20_000, 5, 0)
    found = helpful_temperature(logits * true, labels)
    assert found == pytest.approx(true, rel=0.05)
    before, after = score(logits * true, labels), score(logits * true / found, labels)
    assert after.accuracy == before.accuracy
    assert after.nll <= before.nll + 1e-6
    assert after.ece < 0.02


def test_few_correct_photos_do_not_make_the_classifier_certain():
    """By the rule of succession 30 of 30 give 31/32; the prior allows more, if logits are large."""
    labels = np.arange(30) % 3
    certain = []
    for scale in (1.0, 10.0, 100.0):
        logits = np.eye(3)[labels] * scale
        certain.append(np.exp(log_softmax(logits / fit_temperature(logits, labels)))[0, 0])
    assert 0.7 < certain[0] < 31 / 32 < certain[1] < 0.995 < certain[2] < 0.9999


@pytest.mark.parametrize("count", [4, 8, 30])
def test_a_classifier_that_is_right_and_sure_on_few_photos_becomes_less_sure(count):
    labels = np.arange(count) % 2
    logits = 200.0 * np.eye(2)[labels]
    logits[0] /= 2
    assert helpful_temperature(logits, labels) > 3


def test_few_photos_change_a_temperature_little_and_many_find_it():
    logits, labels = drawn(5_000, 5, 1)
    few, some, many = (fit_temperature(4 * logits[:n], labels[:n]) for n in (3, 30, 5_000))
    assert 1 < few < some < many == pytest.approx(4, rel=0.1)


def test_ten_classes_do_not_flatten_the_probabilities_of_forty_photos():
    """With smoothing by 1 / (N + k), forty photos of a calibrated model raised the temperature.

    Its probability of the true class could not exceed (40 + 1) / (40 + 10). Here the model is
    calibrated by construction, so that every temperature but 1 makes it worse.
    """
    harms, found = [], []
    test_logits, test_labels = drawn(10_000, 10, 100, scale=6.0)
    before = score(test_logits, test_labels)
    for seed in range(20):
        logits, labels = drawn(40, 10, seed, scale=6.0)
        smoothed = np.full(logits.shape, 1 / 50)
        smoothed[np.arange(40), labels] = 41 / 50
        grid = np.exp(np.linspace(-2, 3, 200))
        old = min(grid, key=lambda t: -(smoothed * log_softmax(logits / t)).sum())
        harms.append(score(test_logits / old, test_labels).nll - before.nll)
        found.append(helpful_temperature(logits, labels))
    assert min(harms) > 0.1
    after = [score(test_logits / temperature, test_labels) for temperature in found]
    assert max(scores.nll for scores in after) <= before.nll + 0.03
    assert max(scores.ece for scores in after) <= before.ece + 0.03
    assert found.count(1.0) >= 15


def test_a_classifier_that_is_always_wrong_gets_a_high_temperature():
    labels = np.arange(300) % 3
    logits = -5 * np.eye(3)[labels]
    assert 10 < helpful_temperature(logits, labels) < TEMPERATURES[1]
