"""Fitting recovers a known temperature, and stays cautious with few images."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import fit_temperature, score
from fgvpl_jax.evaluation.calibration import TEMPERATURES
from fgvpl_jax.evaluation.metrics import log_softmax


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(true):
    """Labels are drawn from softmax(logits); the model returns logits · true."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = fit_temperature(logits * true, labels)
    assert found == pytest.approx(true, rel=0.05)
    before, after = score(logits * true, labels), score(logits * true / found, labels)
    assert after.accuracy == before.accuracy
    assert after.nll <= before.nll + 1e-3  # because the fit smooths its targets a little
    assert after.ece < 0.02


def test_few_correct_photos_do_not_make_the_classifier_certain():
    """By the rule of succession, 30 of 30 correct give 31/33, however large the logits are."""
    labels = np.arange(30) % 3
    for scale in (1.0, 10.0, 100.0):
        logits = np.eye(3)[labels] * scale
        temperature = fit_temperature(logits, labels)
        assert np.exp(log_softmax(logits / temperature))[0, 0] == pytest.approx(31 / 33, abs=1e-3)


def test_a_classifier_that_is_always_wrong_gets_almost_the_highest_temperature():
    labels = np.arange(30) % 3
    assert fit_temperature(-5 * np.eye(3)[labels], labels) == pytest.approx(
        TEMPERATURES[1], rel=0.1
    )
