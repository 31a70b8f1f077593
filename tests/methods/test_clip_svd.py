"""CLIP-SVD: its initial logits, its factors and its gradients."""

import gc

import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import load_clip
from fgvpl_jax.clip.layers import Linear
from fgvpl_jax.methods import clip_svd
from fgvpl_jax.methods.clip_svd import ClipSVD, SVDLinear, decompose
from fgvpl_jax.training import split_model
from fgvpl_jax.variables import to_device
from tests.compiled import call, run
from tests.methods.checks import (
    CLASSES,
    TEMPLATE,
    assert_gradients_are_central_differences,
    cosine_logits_of,
)

PARTS = ("attention.query", "attention.key", "attention.value", "attention.out", "fc1", "fc2")


@pytest.fixture(scope="module")
def model(clip, text_features):
    """Returns a model that no test changes."""
    return ClipSVD(clip, CLASSES, TEMPLATE, text_features)


@pytest.fixture(scope="module")
def images(clip):
    rng = np.random.default_rng(0)
    shape = (3, clip.image_size, clip.image_size, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


def part_of(layer, path):
    for name in path.split("."):
        layer = getattr(layer, name)
    return layer


def test_a_layer_by_hand():
    base = Linear(2, 3, rngs=nnx.Rngs(0))
    base.kernel.set_value(to_device(np.array([[0, 3, 0], [2, 0, 0]])))
    base.bias.set_value(to_device([10, 20, 30]))
    layer = SVDLinear(base.bias, decompose(base))
    np.testing.assert_allclose(layer.singular_values[...], [3, 2], rtol=1e-6)
    layer.singular_values.set_value(to_device([30, -2]))
    # x = (1, 5): the second output is 30 · 1, the first -2 · 5.
    np.testing.assert_allclose(call(layer, to_device(np.array([[1, 5]]))), [[0, 50, 30]], atol=1e-5)


def test_it_begins_at_zero_shot_clip(model, images):
    zero_shot = run(ClipSVD.zero_shot_logits, model, images)
    np.testing.assert_allclose(call(model, images, None), zero_shot, rtol=1e-4, atol=1e-3)


def test_it_equals_a_clip_with_the_factors_multiplied(model, clip, images):
    rng = np.random.default_rng(1)
    moved = nnx.clone(model)
    vision, text = nnx.clone(clip.vision), nnx.clone(clip.text)
    layers = [*zip(moved.adapted_encoder.vision.layers, vision.layers, strict=True)]
    layers += zip(moved.adapted_text.layers, text.layers, strict=True)
    for adapted, plain in layers:
        for path in PARTS:
            trained, merged = part_of(adapted, path), part_of(plain, path)
            kernel = np.asarray(merged.kernel[...], np.float64)
            left, values, right = np.linalg.svd(kernel, full_matrices=False)
            values = values * rng.uniform(0.2, 2, len(values))
            trained.singular_values.set_value(to_device(values))
            merged.kernel.set_value(to_device(left @ np.diag(values) @ right))
    expected = cosine_logits_of(clip, vision, text, images)
    found = np.asarray(call(moved, images, None))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    zero_shot = np.asarray(run(ClipSVD.zero_shot_logits, moved, images))
    assert np.abs(found - zero_shot).max() > 0.1


def test_only_the_singular_values_are_trained(model, clip):
    _, trainable, _ = split_model(model)
    assert {path[-1] for path, _ in nnx.to_flat_state(trainable)} == {"singular_values"}
    layers = clip.vision.config.num_layers + clip.text.config.num_layers
    assert len(nnx.to_flat_state(trainable)) == 6 * layers
    assert isinstance(clip.vision.layers[0].fc1, Linear)  # the backbone is unchanged


def test_gradients(model, images):
    assert_gradients_are_central_differences(model, images, [0, 1, 2])


def test_models_of_one_backbone_share_the_factors_alone(clip, text_features, tiny_clip_dir):
    first, second = (ClipSVD(clip, CLASSES, TEMPLATE, text_features) for _ in range(2))
    layers = [model.adapted_encoder.vision.layers[0].fc1 for model in (first, second)]
    assert layers[0].left[...] is layers[1].left[...]
    values = np.asarray(layers[0].singular_values[...])
    layers[0].singular_values.set_value(to_device(values + 1))
    assert not np.array_equal(layers[0].singular_values[...], layers[1].singular_values[...])
    number = len(clip_svd._factors)
    other = load_clip(str(tiny_clip_dir))
    ClipSVD(other, CLASSES, TEMPLATE, text_features)
    assert len(clip_svd._factors) == number + 1
    del other
    gc.collect()
    assert len(clip_svd._factors) == number  # they are freed with their backbone


def test_the_schedule_is_a_cosine_to_1e_6():
    schedule = ClipSVD.schedule(5e-4, 10, 2)
    rates = [float(schedule(step)) for step in (0, 10, 20)]
    np.testing.assert_allclose(rates, [5e-4, (5e-4 + 1e-6) / 2, 1e-6], rtol=1e-5)


@pytest.mark.parametrize(
    ("shots", "num_images", "epochs"), [(16, 160, 640), (1, 10, 200), (1, 1000, 7)]
)
def test_200_iterations_per_shot(shots, num_images, epochs):
    assert ClipSVD.recipe("eurosat", shots, num_images).epochs == epochs
