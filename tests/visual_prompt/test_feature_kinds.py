import jax.numpy as jnp
import numpy as np
import pytest

from fgvpl_jax import load_clip
from fgvpl_jax.visual_prompt import FeatureKinds, FeatureKindsEncoder


@pytest.mark.parametrize("attention_map", ["product", "border_contrast"])
def test_the_features_are_those_of_clips_own_layers(tiny_clip_dir, attention_map):
    clip = load_clip(str(tiny_clip_dir))
    vision = clip.vision
    side = clip.image_size
    images = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), np.uint8)
    encoder = FeatureKindsEncoder(clip.image_encoder, attention_map=attention_map, connectivity=2)
    packed = encoder(jnp.asarray(images))
    assert packed.shape == (3, encoder.feature_dim)
    found = FeatureKinds.unpacked(packed, vision.config.embed_dim)

    tokens = vision.embed(clip.image_encoder.normalize_pixels(jnp.asarray(images)))
    *layers, last = vision.layers
    for layer in layers:
        tokens, _ = layer(tokens)
    whole, _ = last(tokens)
    image = clip.image_encoder(jnp.asarray(images))
    patches = vision.project(whole[:, 1:]).mean(axis=1)
    np.testing.assert_allclose(found.kinds[:, 0], image, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.kinds[:, 2], patches, rtol=1e-4, atol=1e-5)
    # Background tokens are left out instead of masked.
    for i, mask in enumerate(np.asarray(found.object_mask)):
        kept = np.concatenate([[True], mask])
        own, _ = last(tokens[i : i + 1, kept])
        expected = vision.project(own[0, 0])
        np.testing.assert_allclose(found.kinds[i, 1], expected, rtol=1e-4, atol=1e-5)


def test_the_settings_name_the_mask(tiny_clip_dir):
    clip = load_clip(str(tiny_clip_dir))
    names = [
        FeatureKindsEncoder(clip.image_encoder, attention_map=name, connectivity=2).settings
        for name in ("product", "border_contrast")
    ]
    assert names[0] != names[1] != clip.image_encoder.settings == []
