"""CLIP-LoRA: its initial logits, its updates and its gradients."""

import math

import numpy as np
import pytest
from flax import nnx

from fgvpl_jax.clip.layers import Linear
from fgvpl_jax.methods.clip_lora import ClipLoRA, LoRALinear
from fgvpl_jax.training import split_model
from fgvpl_jax.variables import to_device
from tests.compiled import call, run
from tests.methods.checks import (
    CLASSES,
    TEMPLATE,
    assert_gradients_are_central_differences,
    cosine_logits_of,
)


@pytest.fixture(scope="module")
def model(clip, text_features):
    """Returns a model that no test changes."""
    return ClipLoRA(clip, CLASSES, TEMPLATE, text_features, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def images(clip):
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (3, clip.image_size, clip.image_size, 3), dtype=np.uint8)


def test_an_update_by_hand():
    base = Linear(3, 2, rngs=nnx.Rngs(0))
    base.kernel.set_value(to_device(np.array([[1, 0], [0, 1], [0, 0]])))
    base.bias.set_value(to_device([10, 20]))
    layer = LoRALinear(base, rngs=nnx.Rngs(0))
    layer.down.set_value(to_device(np.array([[1, 0], [0, 0], [0, 2]])))
    layer.up.set_value(to_device(np.array([[3, 0], [0, 4]])))
    # x = (1, 2, 5): x·down = (1, 10), ·up = (3, 40), / sqrt(2); x·kernel + bias = (11, 22).
    expected = [[11 + 3 / math.sqrt(2), 22 + 40 / math.sqrt(2)]]
    np.testing.assert_allclose(call(layer, to_device(np.array([[1, 2, 5]]))), expected, rtol=1e-6)


def test_it_begins_at_zero_shot_clip(model, images):
    zero_shot = run(ClipLoRA.zero_shot_logits, model, images)
    np.testing.assert_allclose(call(model, images, None), zero_shot, rtol=1e-4, atol=1e-3)


def test_it_equals_a_clip_with_the_updates_merged(model, clip, images):
    rng = np.random.default_rng(1)
    moved = nnx.clone(model)
    vision, text = nnx.clone(clip.vision), nnx.clone(clip.text)
    layers = [*zip(moved.adapted_encoder.vision.layers, vision.layers, strict=True)]
    layers += zip(moved.adapted_text.layers, text.layers, strict=True)
    for adapted, plain in layers:
        for part in ("query", "key", "value"):
            update, merged = getattr(adapted.attention, part), getattr(plain.attention, part)
            update.up.set_value(to_device(0.3 * rng.normal(size=update.up.shape)))
            delta = np.asarray(update.down[...]) @ np.asarray(update.up[...]) / np.sqrt(2)
            merged.kernel.set_value(to_device(np.asarray(merged.kernel[...]) + delta))
    expected = cosine_logits_of(clip, vision, text, images)
    found = np.asarray(call(moved, images, None))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    zero_shot = np.asarray(run(ClipLoRA.zero_shot_logits, moved, images))
    assert np.abs(found - zero_shot).max() > 0.1


def test_only_the_updates_are_trained(model, clip):
    _, trainable, _ = split_model(model)
    names = {str(path[-1]) for path, _ in nnx.to_flat_state(trainable)}
    assert names == {"down", "up"}
    layers = clip.vision.config.num_layers + clip.text.config.num_layers
    assert len(nnx.to_flat_state(trainable)) == 2 * 3 * layers
    assert isinstance(clip.vision.layers[0].attention.query, Linear)  # the backbone is unchanged


def test_gradients(model, images):
    assert_gradients_are_central_differences(model, images, [0, 1, 2])


@pytest.mark.parametrize(
    ("shots", "num_images", "epochs"), [(16, 160, 1600), (1, 10, 500), (1, 1000, 16)]
)
def test_500_iterations_per_shot(shots, num_images, epochs):
    assert ClipLoRA.recipe("eurosat", shots, num_images).epochs == epochs
