"""FG-VPL's encoder on SigLIP and ResNets, against a float64 NumPy recomputation.

The recomputation removes background cells instead of masking them, and multiplies whole attention
matrices for the roll-out. Its layers below the pooling are the package's, in float64; these equal
the families' own libraries (`tests/clip/test_families.py`).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import erf

from fgvpl_jax import load_clip, object_mask
from fgvpl_jax.variables import Trainable, to_device
from fgvpl_jax.visual_prompt import ATTENTION_MAPS, fine_grained_encoder
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS
from fgvpl_jax.visual_prompt.encoder import BORDER_CONTRAST
from fgvpl_jax.visual_prompt.pooled_encoder import PooledFGImageEncoder
from tests.comparison import as_float64, relative_error
from tests.compiled import call, run
from tests.tiny_backbones import small_perception_encoder, write_tiny_backbone

PROMPTS = 2
mask_of = jax.jit(object_mask, static_argnums=1)


@pytest.fixture(scope="module", params=["siglip", "resnet_wide", "pe_core"])
def clip(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    with small_perception_encoder():
        write_tiny_backbone(directory, request.param)
        return load_clip(directory)


def encoder_of(clip, num_prompts=PROMPTS, **settings):
    @nnx.jit
    def build(vision):
        return fine_grained_encoder(vision, num_prompts, rngs=nnx.Rngs(0), **settings)

    encoder = build(clip.vision)
    rng = np.random.default_rng(1)
    # Far from their initial values, so that each trained part changes the outputs.
    for _, variable in nnx.to_flat_state(nnx.state(encoder, Trainable)):
        noise = rng.normal(scale=0.2, size=variable.shape)
        variable.set_value(to_device(np.asarray(variable[...]) + noise))
    return encoder


def pixels_of(clip, batch=4):
    side = clip.image_size
    rng = np.random.default_rng(2)
    return rng.normal(size=(batch, side, side, 3)).astype(np.float32)


def in_float64(function, encoder, pixels):
    """Returns `function(encoder, pixels)` with float64 parameters and pixels."""
    graphdef, state = nnx.split(encoder)
    with jax.enable_x64(True):
        wide = nnx.merge(graphdef, as_float64(state))
        return jax.tree.map(np.asarray, run(function, wide, pixels.astype(np.float64)))


def each_map(encoder, pixels):
    """Returns the outputs with each roll-out."""
    found = {}
    for name in ROLL_OUTS:
        encoder.map_name = name
        found[name] = encoder(pixels)
    return found


def layers(encoder, pixels):
    """Returns the tokens that enter the pooling, and the attention weights of each layer."""
    tokens = encoder.vision.embed(pixels)
    prompt = jnp.broadcast_to(encoder.prompt[...], (len(pixels), *encoder.prompt.shape))
    tokens, attentions = jnp.concatenate([tokens, prompt], axis=1), []
    for layer in encoder.vision.attention_layers:
        tokens, weights = layer(tokens)
        attentions.append(weights)
    return encoder.vision.before_pooling(tokens), attentions


@pytest.fixture(scope="module")
def encoder(clip):
    """Returns an encoder that no test changes."""
    return encoder_of(clip)


@pytest.fixture(scope="module")
def wide_outputs(clip, encoder):
    """Returns the outputs with each roll-out in float64."""
    return in_float64(each_map, encoder, pixels_of(clip))


@pytest.fixture(scope="module")
def wide_layers(clip, encoder):
    """Returns the tokens that enter the pooling and the layers' attention weights in float64."""
    return in_float64(layers, encoder, pixels_of(clip))


class NumPyPooling:
    """The pooling of one image in NumPy, over whichever tokens it is given."""

    def __init__(self, module):
        self.state = {
            ".".join(map(str, path)): np.asarray(variable[...], np.float64)
            for path, variable in nnx.to_flat_state(nnx.state(module))
        }
        self.num_heads = module.attention.num_heads
        self.eps = module.norm.eps if hasattr(module, "norm") else None

    def linear(self, name, x):
        return x @ self.state[f"{name}.kernel"] + self.state[f"{name}.bias"]

    def after(self, x):
        if "fc1.kernel" not in self.state:
            return x
        centred = x - x.mean(axis=-1, keepdims=True)
        normed = centred / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self.eps)
        hidden = self.linear("fc1", normed * self.state["norm.scale"] + self.state["norm.bias"])
        if "projection.kernel" in self.state:  # Perception Encoder
            share = (1 + erf(hidden / np.sqrt(2))) / 2
            return self.linear("projection", x + self.linear("fc2", hidden * share))
        cubic = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        return x + self.linear("fc2", 0.5 * hidden * (1 + np.tanh(cubic)))

    def __call__(self, tokens):
        """Returns the feature and each head's weights."""
        reader = self.state["probe"][0, 0] if "probe" in self.state else tokens[0]
        query = self.linear("attention.query", reader).reshape(self.num_heads, -1)
        key, value = (
            self.linear(f"attention.{name}", tokens).reshape(len(tokens), self.num_heads, -1)
            for name in ("key", "value")
        )
        scores = np.einsum("hc,thc->ht", query, key) / np.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        mixed = np.einsum("ht,thc->hc", weights, value).ravel()
        return self.after(self.linear("attention.out", mixed)), weights

    def each(self, tokens):
        return self.after(self.linear("attention.out", self.linear("attention.value", tokens)))


def recomputed(encoder, map_name, tokens, attentions):
    """Returns the outputs of each image, from float64 tokens and attention weights."""
    vision = encoder.vision
    frozen, trained = NumPyPooling(vision.pooling), NumPyPooling(encoder.fine_grained_layer)
    first, count = vision.num_readers, int(np.prod(vision.grid))
    residual, depth = ROLL_OUTS[map_name]
    found = []
    for number, image in enumerate(tokens):
        feature, row = frozen(image)
        below = attentions if depth is None else attentions[max(0, len(attentions) + 1 - depth) :]
        if below and below[0].shape[1] != len(row):  # Perception Encoder
            row = np.tile(row.mean(axis=0), (below[0].shape[1], 1))
        product = np.broadcast_to(np.eye(row.shape[1]), (len(row), *(row.shape[1],) * 2))
        for weights in below:
            one = (1 - residual) * weights[number] + residual * np.eye(row.shape[1])
            product = one @ product
        significance = np.einsum("ht,htu->hu", row, product)[:, first : first + count].sum(axis=0)
        mask = np.asarray(mask_of(significance[None].astype(np.float32), vision.grid))[0]
        places = first + np.flatnonzero(mask)
        kept = [*range(first), *places, *range(first + count, len(image))]
        patches = frozen.each(image[first : first + count])
        means = patches[mask].mean(axis=0), patches.mean(axis=0)
        found.append((feature, trained(image[kept])[0], *means, significance, mask))
    return [np.stack(parts) for parts in zip(*found, strict=True)]


@pytest.mark.parametrize("attention_map", ROLL_OUTS)
def test_outputs_equal_a_recomputation_that_removes_the_background(
    encoder, wide_outputs, wide_layers, attention_map
):
    ours = wide_outputs[attention_map]
    expected = recomputed(encoder, attention_map, *wide_layers)
    np.testing.assert_array_equal(ours.object_mask, expected[-1])
    share = expected[-1].mean()
    assert 0 < share < 1, "the masks hide nothing: choose another seed"
    errors = [relative_error(one, other) for one, other in zip(ours[:5], expected[:5], strict=True)]
    print(attention_map, [f"{error:.1e}" for error in errors], f"share of objects {share:.2f}")
    assert max(errors[:4]) <= 1e-12
    assert errors[4] <= 1e-6  # the map is float32


def test_without_a_prompt_the_image_feature_is_the_backbones(clip):
    encoder, pixels = encoder_of(clip, 0), pixels_of(clip)
    assert isinstance(encoder, PooledFGImageEncoder)
    assert relative_error(call(encoder, pixels).image, clip.encode_image(pixels)) <= 1e-5


def entering_tokens(encoder, pixels):
    return jnp.concatenate([encoder.vision.embed(pixels), encoder.prompt[...][None]], axis=1)


def test_masked_cells_do_not_reach_the_object_feature(clip, encoder):
    tokens = np.asarray(run(entering_tokens, encoder, pixels_of(clip, 1)))
    masked = encoder.vision.num_readers
    mask = np.ones(tokens.shape[:2], bool)
    mask[0, masked] = False
    feature, weights = call(encoder.fine_grained_layer, tokens, mask)
    assert (np.asarray(weights)[:, :, masked] == 0).all()
    other = tokens.copy()
    other[0, masked] += 7
    np.testing.assert_array_equal(feature, call(encoder.fine_grained_layer, other, mask)[0])


def test_gradients_agree_with_central_differences(clip, encoder):
    graphdef, trained, frozen = nnx.split(encoder, Trainable, ...)
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(3, clip.vision.config.embed_dim))
    pixels = pixels_of(clip, 2).astype(np.float64)
    with jax.enable_x64(True):
        trained, frozen = as_float64(trained), as_float64(frozen)

        @jax.jit
        @jax.value_and_grad
        def loss(trained):
            features = nnx.merge(graphdef, trained, frozen)(jnp.asarray(pixels))
            return sum(jnp.tanh(f @ w).sum() for f, w in zip(features[:3], weights, strict=True))

        _, gradients = loss(trained)
        values = dict(nnx.to_flat_state(trained))
        for path, gradient in nnx.to_flat_state(gradients):
            step = rng.normal(size=gradient.shape)
            ends = []
            for sign in (1, -1):
                moved = values[path].replace(np.asarray(values[path][...]) + sign * 1e-6 * step)
                state = nnx.from_flat_state([*(values | {path: moved}).items()])
                ends.append(float(loss(state)[0]))
            expected = (ends[0] - ends[1]) / 2e-6
            ours = np.vdot(gradient[...], step)
            assert ours == pytest.approx(expected, rel=1e-4, abs=1e-7), path


def test_recomputing_activations_changes_nothing(clip, wide_outputs):
    encoder = encoder_of(clip, attention_map="residual", rematerialise=True)
    ours = in_float64(call, encoder, pixels_of(clip))
    for one, other in zip(ours, wide_outputs["residual"], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def narrow_outputs(clip):
    """Returns the outputs with each map in bfloat16."""
    pixels = pixels_of(clip)
    contrast = encoder_of(clip, attention_map=BORDER_CONTRAST, compute_dtype="bfloat16")
    rolled_out = encoder_of(clip, compute_dtype="bfloat16")
    return {BORDER_CONTRAST: call(contrast, pixels)} | run(each_map, rolled_out, pixels)


@pytest.mark.parametrize("attention_map", ATTENTION_MAPS)
def test_every_map_runs_in_bfloat16_with_wide_features(narrow_outputs, wide_outputs, attention_map):
    features = narrow_outputs[attention_map]
    assert {one.dtype for one in features[:5]} == {jnp.dtype("float32")}
    assert np.asarray(features.object_mask).any(axis=1).all()
    # The image feature does not depend on the map.
    assert relative_error(features.image, wide_outputs["product"].image) < 0.1
