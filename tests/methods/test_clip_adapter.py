"""CLIP-Adapter by hand, and its gradients."""

import numpy as np
from flax import nnx

from fgvpl_jax.methods.clip_adapter import ClipAdapter
from fgvpl_jax.variables import to_device
from tests.compiled import run
from tests.methods.checks import assert_gradients_are_central_differences


def test_a_case_by_hand(clip):
    """With e = 4, the bottleneck has one unit."""
    text = to_device(np.eye(2, 4))
    model = ClipAdapter(clip, text, rngs=nnx.Rngs(0))
    assert model.down.shape == (4, 1)
    assert model.up.shape == (1, 4)
    model.down.set_value(to_device(np.array([[1], [0], [0], [-1]])))
    model.up.set_value(to_device(np.array([[5, -5, 10, 0]])))
    model.logit_scale.set_value(to_device(10))
    # First: hidden 2, adapted (10, 0, 20, 0), mixed 0.2 · that + 0.8 · (2, 5, 0, 0) =
    # (3.6, 4, 4, 0), of norm sqrt(44.96). Second: hidden relu(-3) = 0, so 0.8 · the feature.
    features = np.array([[2, 5, 0, 0], [0, 4, 0, 3]], np.float32)
    expected = [[36 / np.sqrt(44.96), 40 / np.sqrt(44.96)], [0.0, 8.0]]
    found = run(ClipAdapter.logits, model, features, None)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_gradients(clip, text_features):
    model = ClipAdapter(clip, text_features, rngs=nnx.Rngs(0))
    features = np.random.default_rng(1).normal(size=(4, 16))
    assert_gradients_are_central_differences(model, features, [0, 1, 2, 1], spread=0.3)
