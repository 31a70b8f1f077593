"""Compares the attention roll-out with the full float64 matrix product."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgvpl_jax import attention_map
from fgvpl_jax.errors import UserError
from fgvpl_jax.visual_prompt.attention_map import class_token_row


def random_attentions(rng, layers, batch, heads, tokens, sharpness=2.0):
    scores = rng.normal(scale=sharpness, size=(layers, batch, heads, tokens, tokens))
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


map_of = jax.jit(attention_map, static_argnames=("num_prompts", "residual"))


@partial(jax.jit, static_argnames=("num_prompts", "residual"))
def recomputed_attention_map(pairs, num_prompts=1, residual=0.0):
    row = class_token_row(pairs, residual)
    return row[..., 1 : row.shape[-1] - num_prompts].sum(axis=1)


def full_product(attentions, num_prompts):
    """Computes Eq. 6 as printed, with the top layer on the left, then Eq. 7."""
    product = attentions[0]
    for weights in attentions[1:]:
        product = weights @ product
    return product[:, :, 0, 1 : product.shape[-1] - num_prompts].sum(axis=1)


@pytest.mark.parametrize(("layers", "tokens"), [(1, 6), (3, 18), (11, 51), (11, 198)])
@pytest.mark.parametrize("num_prompts", [0, 1, 4])
def test_equals_the_full_product(layers, tokens, num_prompts):
    rng = np.random.default_rng(layers)
    attentions = random_attentions(rng, layers, 2, 3, tokens)
    ours = map_of([*attentions.astype(np.float32)], num_prompts=num_prompts)
    np.testing.assert_allclose(ours, full_product(attentions, num_prompts), rtol=1e-5)


@pytest.mark.parametrize(("layers", "num_prompts"), [(1, 1), (2, 0), (5, 4)])
def test_weights_recomputed_from_queries_and_keys_equal_the_full_product(layers, num_prompts):
    rng = np.random.default_rng(layers)
    queries, keys = rng.normal(size=(2, layers, 2, 3, 18, 4))  # layer, image, head, token, channel
    weights = np.exp(np.einsum("lbhqc,lbhkc->lbhqk", queries, keys))
    weights /= weights.sum(axis=-1, keepdims=True)
    pairs = [*zip(queries.astype(np.float32), keys.astype(np.float32), strict=True)]
    ours = recomputed_attention_map(pairs, num_prompts=num_prompts)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, full_product(weights, num_prompts), rtol=1e-5)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_residual_mixes_every_layer_with_the_identity(layers, recomputed):
    rng = np.random.default_rng(layers)
    queries, keys = rng.normal(size=(2, layers, 2, 3, 12, 4))
    weights = np.exp(np.einsum("lbhqc,lbhkc->lbhqk", queries, keys))
    weights /= weights.sum(axis=-1, keepdims=True)
    if recomputed:
        pairs = [*zip(queries.astype(np.float32), keys.astype(np.float32), strict=True)]
        ours = recomputed_attention_map(pairs, residual=0.25)
    else:
        ours = map_of([*weights.astype(np.float32)], residual=0.25)
    mixed = 0.75 * weights + 0.25 * np.eye(12)
    np.testing.assert_allclose(ours, full_product(mixed, 1), rtol=1e-5)


def test_the_order_of_layers_matters():
    attentions = random_attentions(np.random.default_rng(0), 4, 1, 2, 10)
    layers = [*attentions.astype(np.float32)]
    assert not np.allclose(map_of(layers[::-1]), full_product(attentions, 1), rtol=1e-2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), layers=st.integers(1, 6), tokens=st.integers(3, 20))
def test_the_rolled_out_row_keeps_summing_to_one(seed, layers, tokens):
    attentions = random_attentions(np.random.default_rng(seed), layers, 2, 3, tokens)
    patches = map_of([*attentions.astype(np.float32)])
    product = attentions[0]
    for weights in attentions[1:]:
        product = weights @ product
    rest = product[:, :, 0, [0, -1]].sum(axis=(1, 2))
    np.testing.assert_allclose(np.asarray(patches).sum(axis=1) + rest, 3.0, rtol=1e-5)
    assert (np.asarray(patches) >= 0).all()


def test_low_precision_weights_are_accumulated_in_float32():
    attentions = random_attentions(np.random.default_rng(1), 11, 1, 4, 50)
    rounded = [*attentions.astype(jnp.bfloat16)]
    ours = map_of(rounded)
    assert ours.dtype == jnp.float32
    exact = full_product(np.stack([np.asarray(a, np.float64) for a in rounded]), 1)
    np.testing.assert_allclose(ours, exact, rtol=1e-5)


def test_no_gradient_flows():
    attentions = random_attentions(np.random.default_rng(2), 3, 1, 2, 8).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda a: attention_map(list(a)).sum()))(attentions)
    assert (np.asarray(gradient) == 0).all()


def test_no_gradient_flows_where_weights_are_recomputed():
    pairs = np.random.default_rng(2).normal(size=(3, 2, 1, 8, 2, 4)).astype(np.float32)

    @jax.jit
    @jax.grad
    def gradient_of(pairs):
        return recomputed_attention_map([tuple(pair) for pair in pairs]).sum()

    gradient = gradient_of(pairs)
    assert (np.asarray(gradient) == 0).all()


@pytest.mark.parametrize(("tokens", "num_prompts"), [(2, 1), (5, 4), (5, -1)])
def test_a_sequence_without_patches_is_refused(tokens, num_prompts):
    with pytest.raises(UserError, match=f"{tokens} tokens.*{num_prompts} prompts"):
        map_of([np.ones((1, 1, tokens, tokens), np.float32)], num_prompts=num_prompts)


def test_no_layers_are_refused():
    with pytest.raises(UserError, match="at least one layer"):
        attention_map([])
