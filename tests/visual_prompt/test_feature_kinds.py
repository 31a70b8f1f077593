import numpy as np
import pytest

from fgvpl_jax.visual_prompt import FeatureKinds, FeatureKindsEncoder
from tests.compiled import call, run


@pytest.fixture(scope="module")
def images(clip):
    side = clip.image_size
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)


def layer_by_layer(image_encoder, images):
    """Returns the tokens that enter the last layer, and those that leave it, projected."""
    vision = image_encoder.vision
    tokens = vision.embed(image_encoder.normalize_pixels(images))
    *layers, last = vision.layers
    for layer in layers:
        tokens, _ = layer(tokens)
    return tokens, vision.project(last(tokens)[0])


def class_tokens(vision, sequences):
    """Returns the last layer's projected class token of each sequence."""
    last = vision.layers[-1]
    return [vision.project(last(tokens[None])[0][0, 0]) for tokens in sequences]


@pytest.mark.parametrize("attention_map", ["product", "border_contrast"])
def test_the_features_are_those_of_clips_own_layers(clip, images, attention_map):
    encoder = FeatureKindsEncoder(clip.image_encoder, attention_map=attention_map, connectivity=2)
    packed = call(encoder, images)
    assert packed.shape == (3, encoder.feature_dim)
    found = FeatureKinds.unpacked(packed, clip.vision.config.embed_dim)
    kinds = np.asarray(found.kinds)

    tokens, whole = map(np.asarray, run(layer_by_layer, clip.image_encoder, images))
    image = call(clip.image_encoder, images)
    np.testing.assert_allclose(kinds[:, 0], image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(kinds[:, 2], whole[:, 1:].mean(axis=1), rtol=1e-4, atol=1e-5)
    # Background tokens are left out instead of masked.
    masks = np.asarray(found.object_mask)
    kept = [one[np.concatenate([[True], mask])] for one, mask in zip(tokens, masks, strict=True)]
    expected = np.stack(run(class_tokens, clip.vision, kept))
    np.testing.assert_allclose(kinds[:, 1], expected, rtol=1e-4, atol=1e-5)


def test_the_settings_name_the_mask(clip):
    names = [
        FeatureKindsEncoder(clip.image_encoder, attention_map=name, connectivity=2).settings
        for name in ("product", "border_contrast")
    ]
    assert names[0] != names[1] != clip.image_encoder.settings == []
