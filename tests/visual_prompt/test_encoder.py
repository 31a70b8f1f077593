"""Compares the encoder with the frozen tower, and its fine-grained branch with removed tokens."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import FGImageEncoder, attention_map
from fgvpl_jax.clip import VisionTower
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.clip.layers import attention_weights
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable, to_device
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS
from tests.comparison import relative_error
from tests.compiled import call, run


@pytest.fixture(scope="module")
def encoder(clip):
    """Returns an encoder with the default settings, which no test changes."""
    return FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def features(encoder, pixels):
    """Returns the outputs of the encoder with the default settings."""
    return call(encoder, pixels)


@pytest.fixture(scope="module")
def without_prompt(clip):
    """Returns an encoder without a prompt, which no test changes."""
    return FGImageEncoder(clip.vision, num_prompts=0, rngs=nnx.Rngs(0))


def spread_out(encoder, seed=0):
    """Moves the trainable layer and the prompt away from their initial values."""
    rng = np.random.default_rng(seed)
    for leaf in jax.tree.leaves(
        nnx.state(encoder, Trainable), is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        leaf.set_value(to_device(np.asarray(leaf[...]) + rng.normal(size=leaf.shape) * 0.1))


def layer_by_layer(encoder, pixels):
    """Returns the tokens that enter the last layer, those that leave it projected, and weights.

    The attention weights are those of the layers below the last.
    """
    tokens = encoder.vision.embed(pixels)
    prompt = jnp.broadcast_to(encoder.prompt[...], (len(pixels), *encoder.prompt.shape))
    tokens, attentions = jnp.concatenate([tokens, prompt], axis=1), []
    *layers, last = encoder.vision.layers
    for layer in layers:
        tokens, weights = layer(tokens)
        attentions.append(weights)
    return tokens, encoder.vision.project(last(tokens)[0]), attentions


def class_tokens(encoder, sequences):
    """Returns the fine-grained layer's projected class token of each sequence."""
    layer, project = encoder.fine_grained_layer, encoder.vision.project
    return [project(layer(tokens[None])[0][0, 0]) for tokens in sequences]


def test_without_a_prompt_image_features_are_clips(clip, without_prompt, pixels):
    np.testing.assert_allclose(
        call(without_prompt, pixels).image, clip.encode_image(pixels), rtol=1e-5, atol=1e-6
    )


def test_a_prompt_changes_image_features(clip, pixels):
    encoder = FGImageEncoder(clip.vision, rngs=nnx.Rngs(0))
    encoder.prompt.set_value(to_device(np.ones(encoder.prompt.shape)))
    assert not np.allclose(call(encoder, pixels).image, clip.encode_image(pixels), atol=1e-3)


@pytest.mark.parametrize("num_prompts", [0, 1, 3])
def test_masked_background_equals_removed_background(clip, pixels, num_prompts):
    """Computes Eq. 9 by removing tokens: only class token, object patches and prompt remain."""
    encoder = FGImageEncoder(clip.vision, num_prompts=num_prompts, rngs=nnx.Rngs(0))
    spread_out(encoder)
    features = call(encoder, pixels)
    tokens = np.asarray(run(layer_by_layer, encoder, pixels)[0])
    num_patches = features.object_mask.shape[1]
    sequences = []
    for image, mask in zip(tokens, np.asarray(features.object_mask), strict=True):
        kept = np.concatenate(
            [[0], 1 + np.flatnonzero(mask), 1 + num_patches + np.arange(num_prompts)]
        )
        assert len(kept) < len(image)
        sequences.append(image[kept])
    expected = run(class_tokens, encoder, sequences)
    np.testing.assert_allclose(features.object, np.stack(expected), rtol=1e-4, atol=1e-5)


def test_object_patches_are_the_mean_over_the_mask(encoder, features, pixels):
    mask = np.asarray(features.object_mask)
    patches = np.asarray(run(layer_by_layer, encoder, pixels)[1], np.float64)
    patches = patches[:, 1 : 1 + mask.shape[1]]
    expected = np.stack([p[m].mean(axis=0) for p, m in zip(patches, mask, strict=True)])
    np.testing.assert_allclose(features.object_patches, expected, rtol=1e-4, atol=1e-5)


def test_only_prompt_and_new_layer_are_trainable(encoder):
    _, trainable, frozen, other = nnx.split(encoder, Trainable, Frozen, ...)
    assert set(trainable) == {"prompt", "fine_grained_layer"}
    assert set(frozen) == {"vision"}
    assert not jax.tree.leaves(other)
    assert np.std(encoder.prompt[...]) == pytest.approx(0.02, rel=0.5)


def test_the_new_layer_copies_the_last_one_without_sharing(clip, encoder):
    new = jax.tree.leaves(nnx.state(encoder.fine_grained_layer))
    old = jax.tree.leaves(nnx.state(list(clip.vision.layers)[-1]))
    assert len(new) == len(old) > 0
    for ours, theirs in zip(new, old, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer()


def test_no_gradient_flows_through_map_and_mask(encoder, pixels):
    graphdef, trainable, frozen = nnx.split(encoder, Trainable, Frozen)

    @jax.jit
    @jax.grad
    def gradients(trainable, pixels):
        return nnx.merge(graphdef, trainable, frozen)(pixels).attention_map.sum()

    leaves = jax.tree.leaves(gradients(trainable, pixels))
    assert leaves
    assert all((np.asarray(g) == 0).all() for g in leaves)


def test_the_mask_stays_inside_the_program(encoder, pixels):
    """Checks that the traced program has no callback and so no transfer to the host."""
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


def test_rematerialising_finds_the_same_objects(clip, features, pixels):
    encoder = FGImageEncoder(clip.vision, rematerialise=True, rngs=nnx.Rngs(0))
    found = call(encoder, pixels)
    np.testing.assert_allclose(found.attention_map, features.attention_map, rtol=1e-5)
    np.testing.assert_array_equal(found.object_mask, features.object_mask)


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


def first_layer(encoder, pixels):
    """Returns the first layer's tokens and weights, and the weights without rounding."""
    layer, seen = encoder.vision.layers[0], encoder.vision.embed(pixels, "bfloat16")
    queries, keys = (x.astype(jnp.float32) for x in layer.queries_and_keys(seen))
    return *layer(seen), attention_weights(queries, keys)


def test_bfloat16_is_near_float32_and_leaves_it_within_the_softmax(clip, features, pixels):
    narrow = FGImageEncoder(clip.vision, compute_dtype="bfloat16", rngs=nnx.Rngs(0))
    tokens, weights, unrounded = run(first_layer, narrow, pixels)
    assert (tokens.dtype, weights.dtype) == (jnp.bfloat16, jnp.bfloat16)
    # Half a unit of 8 bits.
    np.testing.assert_allclose(np.asarray(weights, np.float32), unrounded, rtol=2**-8)
    ours, expected = call(narrow, pixels), features
    for name in ("image", "object", "object_patches", "attention_map"):
        value = getattr(ours, name)
        assert value.dtype == jnp.float32
    for name in ("image", "attention_map"):  # the others depend on the mask
        error = relative_error(getattr(ours, name), getattr(expected, name))
        assert 0 < error < 0.05


def each_map(encoder, pixels):
    """Returns the map of each roll-out."""
    found = {}
    for name in ROLL_OUTS:
        encoder.map_name = name
        found[name] = encoder(pixels).attention_map
    return found


@pytest.fixture(scope="module", params=[False, True], ids=["kept", "recomputed"])
def maps(request, clip, pixels):
    """Returns the map of each roll-out, of weights that are kept or recomputed."""
    encoder = FGImageEncoder(
        clip.vision, num_prompts=0, rematerialise=request.param, rngs=nnx.Rngs(0)
    )
    return run(each_map, encoder, pixels)


@pytest.fixture(scope="module")
def attentions(without_prompt, pixels):
    """Returns the attention weights of all layers but the last, without a prompt."""
    return run(layer_by_layer, without_prompt, pixels)[2]


@pytest.mark.parametrize(("name", "roll_out"), ROLL_OUTS.items())
def test_each_roll_out_uses_its_layers_and_its_residual(maps, attentions, name, roll_out):
    used = attentions[-roll_out.num_layers :] if roll_out.num_layers else attentions
    expected = jax.jit(partial(attention_map, num_prompts=0, residual=roll_out.residual))(used)
    np.testing.assert_allclose(maps[name], expected, rtol=1e-5)


def test_mistakes_are_named(clip):
    with pytest.raises(UserError, match="attention_map is 'sum': choose one of"):
        FGImageEncoder(clip.vision, attention_map="sum", rngs=nnx.Rngs(0))
    with pytest.raises(UserError, match="num_prompts is -1"):
        FGImageEncoder(clip.vision, num_prompts=-1, rngs=nnx.Rngs(0))
