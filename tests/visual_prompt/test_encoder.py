"""Compares the encoder with the frozen tower, and its fine-grained branch with removed tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import FGImageEncoder, attention_map, load_clip
from fgvpl_jax.clip import VisionTower
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.layers import attention_weights
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS
from tests.comparison import relative_error


@pytest.fixture(scope="module")
def clip(tiny_clip_dir):
    return load_clip(str(tiny_clip_dir))


@pytest.fixture(scope="module")
def pixels(clip):
    size = clip.image_size
    return jnp.asarray(np.random.default_rng(0).normal(size=(6, size, size, 3)), jnp.float32)


def spread_out(encoder, seed=0):
    """Moves the trainable layer and the prompt away from their initial values."""
    rng = np.random.default_rng(seed)
    for leaf in jax.tree.leaves(
        nnx.state(encoder, Trainable), is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        leaf[...] = leaf[...] + jnp.asarray(rng.normal(size=leaf.shape) * 0.1, leaf.dtype)


def test_without_a_prompt_image_features_are_clips(clip, pixels):
    encoder = FGImageEncoder(clip.vision, num_prompts=0, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(
        encoder(pixels).image, clip.encode_image(pixels), rtol=1e-5, atol=1e-6
    )


def test_a_prompt_changes_image_features(clip, pixels):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    encoder.prompt[...] = jnp.ones_like(encoder.prompt[...])
    assert not np.allclose(encoder(pixels).image, clip.encode_image(pixels), atol=1e-3)


@pytest.mark.parametrize("num_prompts", [0, 1, 3])
def test_masked_background_equals_removed_background(clip, pixels, num_prompts):
    """Computes Eq. 9 by removing tokens: only class token, object patches and prompt remain."""
    encoder = FGImageEncoder(clip.vision, num_prompts=num_prompts, rngs=nnx.Rngs(0))
    spread_out(encoder)
    features = encoder(pixels)
    tokens = clip.vision.embed(pixels)
    prompt = jnp.broadcast_to(encoder.prompt[...], (len(pixels), *encoder.prompt.shape))
    tokens = jnp.concatenate([tokens, prompt], axis=1)
    for layer in list(clip.vision.layers)[:-1]:
        tokens, _ = layer(tokens)
    num_patches = features.object_mask.shape[1]
    for b in range(len(pixels)):
        kept = np.concatenate(
            [
                [0],
                1 + np.flatnonzero(features.object_mask[b]),
                1 + num_patches + np.arange(num_prompts),
            ]
        )
        assert len(kept) < tokens.shape[1]
        out, _ = encoder.fine_grained_layer(tokens[b : b + 1, kept])
        np.testing.assert_allclose(
            features.object[b], clip.vision.project(out[:, 0])[0], rtol=1e-4, atol=1e-5
        )


def test_object_patches_are_the_mean_over_the_mask(clip, pixels):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    features = encoder(pixels)
    tokens = clip.vision.embed(pixels)
    prompt = jnp.broadcast_to(encoder.prompt[...], (len(pixels), *encoder.prompt.shape))
    tokens = jnp.concatenate([tokens, prompt], axis=1)
    for layer in clip.vision.layers:
        tokens, _ = layer(tokens)
    mask = np.asarray(features.object_mask)
    patches = np.asarray(clip.vision.project(tokens), np.float64)[:, 1 : 1 + mask.shape[1]]
    expected = np.stack([p[m].mean(axis=0) for p, m in zip(patches, mask, strict=True)])
    np.testing.assert_allclose(features.object_patches, expected, rtol=1e-4, atol=1e-5)


def test_only_prompt_and_new_layer_are_trainable(clip):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    _, trainable, frozen, other = nnx.split(encoder, Trainable, Frozen, ...)
    assert set(trainable) == {"prompt", "fine_grained_layer"}
    assert set(frozen) == {"vision"}
    assert not jax.tree.leaves(other)
    assert np.std(encoder.prompt[...]) == pytest.approx(0.02, rel=0.5)


def test_the_new_layer_copies_the_last_one_without_sharing(clip):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    new = jax.tree.leaves(nnx.state(encoder.fine_grained_layer))
    old = jax.tree.leaves(nnx.state(list(clip.vision.layers)[-1]))
    assert len(new) == len(old) > 0
    for ours, theirs in zip(new, old, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()


def test_no_gradient_flows_through_map_and_mask(clip, pixels):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    gradients = nnx.grad(
        lambda e: e(pixels).attention_map.sum(), argnums=nnx.DiffState(0, Trainable)
    )(encoder)
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradients))


def test_the_mask_stays_inside_the_program(clip, pixels):
    """Checks that the traced program has no callback and so no transfer to the host."""
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(encoder)
    text = str(jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s)(x))(state, pixels))
    assert "callback" not in text


def test_rematerialising_keeps_less_for_the_backward_pass(clip, pixels):
    def kept(rematerialise):
        encoder = FGImageEncoder(clip.vision, rematerialise=rematerialise, rngs=nnx.Rngs(0))
        graphdef, trainable, frozen = nnx.split(encoder, Trainable, Frozen)

        def backward(trainable):
            encode = lambda t: nnx.merge(graphdef, t, frozen)(pixels).object  # noqa: E731
            return jax.vjp(encode, trainable)[1]

        residuals = jax.tree.leaves(jax.eval_shape(backward, trainable))
        return sum(leaf.size for leaf in residuals if leaf.shape[:1] == pixels.shape[:1])

    assert kept(True) < kept(False) / 3


def test_rematerialising_finds_the_same_objects(clip, pixels):
    found = [
        FGImageEncoder(clip.vision, rematerialise=rematerialise, rngs=nnx.Rngs(0))(pixels)
        for rematerialise in (False, True)
    ]
    np.testing.assert_allclose(found[1].attention_map, found[0].attention_map, rtol=1e-5)
    np.testing.assert_array_equal(found[1].object_mask, found[0].object_mask)


def test_an_evaluation_that_rematerialises_keeps_no_attention_weights():
    """Measures XLA's temporaries; with 258 tokens, five layers' weights are most of them."""
    config = VisionConfig(64, 6, 4, 128, image_size=64, patch_size=4, embed_dim=16)

    def temporaries(rematerialise):
        def build():
            vision = VisionTower(config, rngs=nnx.Rngs(0))
            return FGImageEncoder(vision, rematerialise=rematerialise, rngs=nnx.Rngs(0))

        graphdef, state = nnx.split(nnx.eval_shape(build))
        encode = jax.jit(lambda state, pixels: nnx.merge(graphdef, state)(pixels))
        images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
        return encode.lower(state, images).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(True) < temporaries(False) / 2


def test_bfloat16_is_near_float32_and_leaves_it_within_the_softmax(clip, pixels):
    wide = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    narrow = FGImageEncoder(clip.vision, compute_dtype="bfloat16", rngs=nnx.Rngs(0))
    layer, seen = narrow.vision.layers[0], narrow.vision.embed(pixels, "bfloat16")
    tokens, weights = layer(seen)
    assert (tokens.dtype, weights.dtype) == (jnp.bfloat16, jnp.bfloat16)
    queries, keys = (x.astype(jnp.float32) for x in layer.queries_and_keys(seen))
    unrounded = attention_weights(queries, keys)
    np.testing.assert_allclose(weights, unrounded, rtol=2**-8)  # half a unit of 8 bits
    ours, expected = narrow(pixels), wide(pixels)
    for name in ("image", "object", "object_patches", "attention_map"):
        value = getattr(ours, name)
        assert value.dtype == jnp.float32
    for name in ("image", "attention_map"):  # the others depend on the mask
        error = relative_error(getattr(ours, name), getattr(expected, name))
        assert 0 < error < 0.05


@pytest.mark.parametrize("rematerialise", [False, True])
@pytest.mark.parametrize(("name", "roll_out"), ROLL_OUTS.items())
def test_each_roll_out_uses_its_layers_and_its_residual(
    clip, pixels, name, roll_out, rematerialise
):
    encoder = FGImageEncoder(
        clip.vision,
        num_prompts=0,
        attention_map=name,
        rematerialise=rematerialise,
        rngs=nnx.Rngs(0),
    )
    tokens, attentions = clip.vision.embed(pixels), []
    for layer in list(clip.vision.layers)[:-1]:
        tokens, weights = layer(tokens)
        attentions.append(weights)
    used = attentions[-roll_out.num_layers :] if roll_out.num_layers else attentions
    expected = attention_map(used, 0, residual=roll_out.residual)
    np.testing.assert_allclose(encoder(pixels).attention_map, expected, rtol=1e-5)


def test_mistakes_are_named(clip):
    with pytest.raises(UserError, match="attention_map is 'sum': choose one of"):
        FGImageEncoder(clip.vision, attention_map="sum", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="num_prompts is -1"):
        FGImageEncoder(clip.vision, num_prompts=-1, rngs=nnx.Rngs(0))
