"""Compares prompts that join above layer 1 with a float64 recomputation, one image at a time."""

from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fgvpl_jax import FGImageEncoder, load_clip
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable, to_device, trainable_copy
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS
from tests.cases import further
from tests.comparison import BOUND, relative_error
from tests.golden import recomputation
from tests.golden.inputs import CASES, OTHER_SEED, SEED, case_inputs
from tests.tiny_clip import tiny_config, write_tiny_clip

CASE = CASES["paper"]
LAYERS = 4
HALF = 2e-3  # relative error of what is computed from float16 tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Returns inputs, the recomputed tower, pixels, and a builder of encoders."""
    inputs, config = case_inputs(CASE), tiny_config(**CASE.clip)
    folders = [tmp_path_factory.mktemp("clip") for _ in range(2)]
    for folder, seed in zip(folders, (SEED, OTHER_SEED), strict=True):
        write_tiny_clip(folder, seed, **CASE.clip)
    clip, other = map(load_clip, folders)
    pixels = recomputation.normalize_pixels(inputs.queries)

    def make(prompt_layer, name, **settings):
        @nnx.jit
        def build(vision):
            return FGImageEncoder(
                vision, prompt_layer=prompt_layer, attention_map=name, rngs=nnx.Rngs(0), **settings
            )

        encoder = build(clip.vision)
        encoder.prompt.set_value(to_device(inputs.prompt))
        encoder.fine_grained_layer = trainable_copy(other.vision.layers[-1])
        return encoder

    return inputs, recomputation.VisionTower(inputs.tensors, config), pixels, make


def encoded(encoder, pixels):
    """Returns the features from pixels, and those from the tokens below the prompt."""
    graphdef, state = nnx.split(encoder)

    @jax.jit
    def both(state, pixels):
        encoder = nnx.merge(graphdef, state)
        return encoder(pixels), encoder(encoder.below_prompt(pixels))

    return both(state, pixels)


def recomputed_map(attentions, num_patches, name):
    """Multiplies whole matrices of all tokens; those below the prompt keep the prompt as it is."""
    size = attentions[-1].shape[-1]

    def whole(weights):
        full = np.stack([np.eye(size)] * len(weights))
        full[:, : weights.shape[1], : weights.shape[2]] = weights
        return full

    residual, num_layers = ROLL_OUTS[name]
    mixed = [(1 - residual) * whole(a) + residual * np.eye(size) for a in attentions]
    product = reduce(lambda lower, upper: upper @ lower, mixed[-(num_layers or 0) :])
    return product[:, 0, 1 : 1 + num_patches].sum(axis=0)


def recomputed_contrast(tokens, tower, num_patches):
    weights = tower.layers[LAYERS // 2]
    normed = recomputation.layer_norm(
        tokens, weights, "layer_norm1", tower.sizes["layer_norm_eps"]
    )[1 : 1 + num_patches]
    edge = np.pad(np.zeros((tower.side - 2,) * 2, bool), 1, constant_values=True).ravel()
    return 1 - recomputation.unit(normed) @ recomputation.unit(normed[edge].mean(axis=0))


def recompute(pixels, inputs, tower, prompt_layer, name):
    """Returns features and map of one image in float64, with the mask that is given to it."""
    tokens, attentions, entering = tower.embed(pixels), [], []
    for number, weights in enumerate(tower.layers[:-1], start=1):
        if number == prompt_layer:
            tokens = np.concatenate([tokens, inputs.prompt])
        entering.append(tokens)
        tokens, attention = recomputation.transformer_layer(tokens, weights, tower.sizes)
        attentions.append(attention)
    if prompt_layer == LAYERS:
        tokens = np.concatenate([tokens, inputs.prompt])
    num_patches = tower.side**2
    if name == "border_contrast":
        significance = recomputed_contrast(entering[LAYERS // 2], tower, num_patches)
    else:
        significance = recomputed_map(attentions, num_patches, name)
    original, _ = recomputation.transformer_layer(tokens, tower.layers[-1], tower.sizes)
    fine_grained = recomputation.part(inputs.fine_grained_layer, "")

    def with_mask(mask):
        kept = np.concatenate([[True], mask, np.ones(len(inputs.prompt), bool)])
        object_, _ = recomputation.transformer_layer(tokens[kept], fine_grained, tower.sizes)
        return {
            "image": tower.project(original[0]),
            "object": tower.project(object_[0]),
            "object_patches": tower.project(original[1 : 1 + num_patches])[mask].mean(axis=0),
        }

    return significance, with_mask


@pytest.mark.parametrize(
    ("prompt_layer", "name", "rematerialise"),
    [
        *((2, "product", False), (2, "border_contrast", False), (4, "last", False)),
        *further(*((2, name, False) for name in ROLL_OUTS if name != "product")),
        *further(*((4, name, False) for name in (*ROLL_OUTS, "border_contrast") if name != "last")),
        *((3, name, True) for name in ("residual", "last_3_residual")),
    ],
)
def test_features_and_maps_equal_a_float64_recomputation(model, prompt_layer, name, rematerialise):
    inputs, tower, pixels, make = model
    encoder = make(prompt_layer, name, rematerialise=rematerialise)
    images = jnp.asarray(pixels, jnp.float32)
    from_pixels, from_tokens = encoded(encoder, images)
    for bound, ours in ((BOUND, from_pixels), (HALF, from_tokens)):
        found = []
        for image, mask in zip(pixels, np.asarray(ours.object_mask), strict=True):
            significance, with_mask = recompute(image, inputs, tower, prompt_layer, name)
            found.append({"attention_map": significance} | with_mask(mask))
        for field in found[0]:
            expected = np.stack([one[field] for one in found])
            assert relative_error(getattr(ours, field), expected) <= bound, field
    # The mask is cut from the map; half precision may move a patch that is at the threshold.
    moved = np.asarray(from_pixels.object_mask) != np.asarray(from_tokens.object_mask)
    assert moved.mean() < 0.05


@pytest.mark.parametrize(
    ("prompt_layer", "name", "shape"),
    [
        (2, "product", "product"),
        (4, "product", "map"),
        (2, "last", None),
        (3, "last", None),
        (4, "last", "map"),
        (2, "border_contrast", None),
        (3, "border_contrast", "map"),
        (4, "border_contrast", "map"),
    ],
)
def test_tokens_come_with_the_part_of_the_map_that_is_decided_below_them(
    model, prompt_layer, name, shape
):
    _, tower, pixels, make = model
    kept = jax.eval_shape(make(prompt_layer, name).below_prompt, jnp.asarray(pixels, jnp.float32))
    b, n, h = len(pixels), tower.side**2, tower.sizes["num_attention_heads"]
    assert kept.tokens.dtype == jnp.float16
    assert kept.tokens.shape[:2] == (b, 1 + n)
    found = None if kept.significance is None else kept.significance.shape
    assert found == {"product": (b, h, 1 + n, n), "map": (b, n), None: None}[shape]


def test_gradients_from_tokens_are_those_from_pixels(model):
    _, _, pixels, make = model
    images = jnp.asarray(pixels, jnp.float32)
    graphdef, trainable, frozen = nnx.split(make(3, "last"), Trainable, Frozen)

    @jax.jit
    def gradients(trainable, pixels):
        inputs = nnx.merge(graphdef, trainable, frozen).below_prompt(pixels)

        def loss(trainable, inputs):
            features = nnx.merge(graphdef, trainable, frozen)(inputs)
            return (features.image + features.object).sum()

        return [jax.tree.leaves(jax.grad(loss)(trainable, x)) for x in (inputs, pixels)]

    ours, expected = gradients(trainable, images)
    assert len(ours) > 1
    for one, other in zip(ours, expected, strict=True):
        assert np.abs(one - other).max() <= 0.02 * np.abs(other).max() + 1e-5


@pytest.mark.parametrize("prompt_layer", [0, 5])
def test_a_layer_that_does_not_exist_is_refused(model, prompt_layer):
    with pytest.raises(UserError, match=f"prompt_layer is {prompt_layer}: give 1 to 4"):
        model[-1](prompt_layer, "product")
