"""Merged towers: the features of the adapted ones, from ordinary layers."""

import numpy as np
import pytest
from flax import nnx

from fgvpl_jax.clip.layers import Linear
from fgvpl_jax.methods.clip_lora import ClipLoRA
from fgvpl_jax.methods.clip_svd import ClipSVD
from fgvpl_jax.methods.two_stage import TwoStage
from fgvpl_jax.variables import Frozen, Trainable, to_device
from tests.comparison import relative_error
from tests.compiled import call, run
from tests.methods.checks import CLASSES

TEMPLATE = "a photo of a {}."
BUILDERS = {
    "clip_lora": lambda clip, w: ClipLoRA(clip, CLASSES, TEMPLATE, w, rngs=nnx.Rngs(0)),
    "clip_svd": lambda clip, w: ClipSVD(clip, CLASSES, TEMPLATE, w),
    "two_stage": lambda clip, w: TwoStage(clip, CLASSES, TEMPLATE, w, first_steps=3),
}


def encoded(text, token_ids, ends):
    return text.encode(token_ids, ends)


@pytest.mark.parametrize("method", BUILDERS)
def test_merged_towers_have_the_features_of_the_adapted_ones(method, clip, text_features):
    model = BUILDERS[method](clip, text_features)
    rng = np.random.default_rng(0)
    for _, variable in nnx.to_flat_state(nnx.state(model, Trainable)):
        noise = rng.normal(scale=0.1, size=variable.shape)
        variable.set_value(to_device(np.asarray(variable[...]) + noise))
    side = clip.image_size
    images = rng.integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    vision, text = model.merged_towers()
    encoder = nnx.clone(clip.image_encoder)
    encoder.vision = vision
    features = run(type(model).features, model, images)
    merged = call(encoder, images)
    assert relative_error(merged, features) < 1e-5
    assert relative_error(merged, call(clip.image_encoder, images)) > 1e-2
    texts = model.texts[...], model.ends[...]
    adapted = run(encoded, model.adapted_text, *texts)
    assert relative_error(run(encoded, text, *texts), adapted) < 1e-5
    for tower in (vision, text):
        for layer in tower.layers:
            attention = layer.attention
            for linear in (layer.fc1, layer.fc2, attention.query, attention.value, attention.out):
                assert type(linear) is Linear
    # The model and the backbone keep their own layers.
    np.testing.assert_array_equal(run(type(model).features, model, images), features)
    assert not nnx.to_flat_state(nnx.state(clip.vision, Trainable))
    assert nnx.to_flat_state(nnx.state(clip.vision, Frozen))
