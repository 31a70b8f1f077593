"""The temperature: found where it is known, and harmless where nothing can be known."""

import numpy as np
import pytest

from fgvpl_jax.evaluation import fit_temperature, score
from fgvpl_jax.evaluation.calibration import TEMPERATURES


@pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
def test_a_known_temperature_is_found(true):
    """Labels drawn from softmax(logits); the model states logits · true."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2.0, size=(20_000, 5))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = fit_temperature(logits * true, labels)
    assert found == pytest.approx(true, rel=0.05)
    before, after = score(logits * true, labels), score(logits * true / found, labels)
    assert after.accuracy == before.accuracy
    assert after.nll <= before.nll + 1e-6
    assert after.ece < 0.02


def test_a_perfect_classifier_has_a_bounded_temperature():
    logits = np.eye(3)[[0, 1, 2]] * 5
    assert TEMPERATURES[0] <= fit_temperature(logits, np.arange(3)) < 0.2
    assert fit_temperature(-logits, np.arange(3)) > 10
