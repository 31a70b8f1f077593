"""The losses of candidates on the devices, against those of NumPy and SciPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax.evaluation.candidate_losses import tempered_losses
from fgvpl_jax.methods.held_out import best_temperature, smoothed_losses


@pytest.mark.parametrize("scale", [0.02, 1.0, 30.0])
@pytest.mark.parametrize("num_classes", [2, 10])
def test_losses_are_those_at_the_best_temperature(scale, num_classes):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, num_classes, 40)
    logits = scale * (3 * np.eye(num_classes)[labels] + rng.normal(size=(40, num_classes)))
    reference = smoothed_losses(logits, labels)
    temperature = best_temperature(lambda t: reference(t).sum())
    padded = jnp.asarray(np.pad(logits, [(0, 5), (0, 0)]), jnp.float32)
    weights = jnp.asarray(np.arange(45) < 40, jnp.float32)
    found = tempered_losses(padded, jnp.asarray(np.pad(labels, (0, 5))), weights)[:40]
    assert found.mean() == pytest.approx(reference(temperature).mean(), abs=1e-3)
    np.testing.assert_allclose(found, reference(temperature), atol=0.05)
