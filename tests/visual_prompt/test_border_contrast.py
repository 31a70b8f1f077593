"""The border contrast: against a float64 recomputation, and on pictures with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import FGImageEncoder, load_clip
from fgvpl_jax.visual_prompt.border_contrast import border_contrast, least_contrast
from fgvpl_jax.visual_prompt.encoder import BORDER_CONTRAST
from tests.compiled import call, run

contrast_of = jax.jit(border_contrast, static_argnums=1)


def recomputed(tokens, grid):
    """Computes the contrast of one image, patch by patch."""
    gh, gw = grid
    border = np.mean(
        [
            token
            for place, token in enumerate(tokens)
            if place // gw in (0, gh - 1) or place % gw in (0, gw - 1)
        ],
        axis=0,
    )
    return [1 - t @ border / np.sqrt((t @ t) * (border @ border)) for t in tokens]


@pytest.mark.parametrize("grid", [(1, 3), (2, 2), (3, 5), (7, 7)])
def test_equals_a_float64_recomputation(grid):
    tokens = np.random.default_rng(0).normal(size=(4, grid[0] * grid[1], 6))
    expected = [recomputed(one, grid) for one in tokens]
    ours = contrast_of(tokens.astype(np.float32), grid)
    np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-6)


def test_scale_and_precision_of_the_tokens_change_little():
    tokens = np.random.default_rng(1).normal(size=(2, 16, 8)).astype(np.float32)
    expected = contrast_of(tokens, (4, 4))
    np.testing.assert_allclose(contrast_of(tokens * 9, (4, 4)), expected, rtol=1e-5)
    narrow = contrast_of(tokens.astype(jnp.bfloat16), (4, 4))
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, expected, atol=0.02)


def test_no_gradient_flows_and_zeros_have_a_contrast():
    tokens = np.zeros((1, 9, 4), np.float32)
    assert np.asarray(contrast_of(tokens, (3, 3))).tolist() == [[1.0] * 9]
    gradient = jax.jit(jax.grad(lambda t: border_contrast(t, (3, 3)).sum()))(tokens + 1)
    assert not np.asarray(gradient).any()


@pytest.fixture(scope="module")
def clip(demo_clip_dir):
    return load_clip(str(demo_clip_dir))


@pytest.fixture(scope="module")
def encoder(clip):
    """Returns an encoder that no test changes."""
    return encoder_of(clip)


def encoder_of(clip, **settings):
    @nnx.jit
    def build(vision):
        return FGImageEncoder(vision, attention_map=BORDER_CONTRAST, rngs=nnx.Rngs(0), **settings)

    return build(clip.vision)


def drawn(clip, centre, radius):
    """Returns a light disc on a dark ground, normalised, and its patches."""
    size, patch = clip.image_size, clip.vision.config.patch_size
    row, column = np.indices((size, size))
    disc = np.hypot(row - centre[0], column - centre[1]) < radius
    gh, gw = clip.vision.grid
    covered = disc.reshape(gh, patch, gw, patch).mean(axis=(1, 3)) > 0.5
    pixels = np.where(disc[..., None], 1.0, -1.0) * np.ones(3)
    return pixels[None].astype(np.float32), covered.ravel()


@pytest.mark.parametrize("rematerialise", [False, True])
def test_the_mask_is_the_disc(clip, rematerialise):
    pixels, covered = drawn(clip, (24, 36), 15)
    found = call(encoder_of(clip, rematerialise=rematerialise), pixels)
    mask = np.asarray(found.object_mask[0])
    assert (mask & covered).sum() / (mask | covered).sum() > 0.6
    contrast = np.asarray(found.attention_map[0])
    assert contrast[covered].min() > np.median(contrast[~covered])


def test_an_even_picture_has_no_object(clip, encoder):
    pixels, _ = drawn(clip, (0, 0), 0)
    found = call(encoder, pixels)
    assert np.asarray(found.object_mask).all()
    assert np.asarray(found.attention_map).max() < float(encoder.least_contrast[...])


def test_the_least_contrast_is_a_share_of_the_test_cards(clip, encoder):
    size = clip.image_size
    pixels, _ = drawn(clip, ((size - 1) / 2, (size - 1) / 2), 0.22 * size)
    # The prompt is part of the encoder's pictures and not of the card's.
    highest = np.asarray(call(encoder, pixels).attention_map).max()
    least = run(least_contrast, clip.vision)
    assert float(least) == pytest.approx(0.4 * highest, rel=0.05)
