"""One transformer layer: fewer queries, masked keys, causality and the compute type."""

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.test_util import check_grads

from fgvpl_jax.clip.config import TransformerConfig
from fgvpl_jax.clip.layers import (
    LayerNorm,
    TransformerLayer,
    attention_weights,
    matmul,
    quick_gelu,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import to_device
from tests.comparison import as_float64
from tests.compiled import call, run


@pytest.fixture(scope="module")
def layer():
    """Returns a layer that no test changes."""
    layer = TransformerLayer(TransformerConfig(24, 1, 3, 48), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for leaf in jax.tree.leaves(nnx.state(layer), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf.set_value(to_device(np.asarray(leaf[...]) + 0.3 * rng.normal(size=leaf.shape)))
    return layer


@pytest.fixture(scope="module")
def tokens():
    return to_device(np.random.default_rng(1).normal(size=(2, 9, 24)))


COUNTS = (1, 4, 9)


def of_each_count(layer, tokens, key_mask):
    """Returns the outputs of all queries, and of the first ones."""
    some = [layer(tokens, key_mask, num_queries=count) for count in COUNTS]
    return layer(tokens, key_mask), some


def causal(layer, tokens):
    return layer(tokens, causal=True)


def test_fewer_queries_are_the_first_rows(layer, tokens):
    mask = np.random.default_rng(2).random((2, 9)) < 0.6
    mask[:, 0] = True
    for key_mask in (None, mask):
        (full, weights), found = run(of_each_count, layer, tokens, key_mask)
        full, weights = np.asarray(full), np.asarray(weights)
        for count, (some, some_weights) in zip(COUNTS, found, strict=True):
            np.testing.assert_allclose(some, full[:, :count], rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(some_weights, weights[:, :, :count], rtol=1e-5, atol=1e-7)


def test_masked_keys_have_no_weight_at_all(layer, tokens):
    mask = np.ones((2, 9), bool)
    mask[0, 3] = mask[1, 5:] = False
    weights = np.asarray(call(layer, tokens, mask)[1])
    assert (weights[0, :, :, 3] == 0).all()
    assert (weights[1, :, :, 5:] == 0).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)


def test_causal_tokens_see_only_the_past(layer, tokens):
    before, weights = map(np.asarray, run(causal, layer, tokens))
    assert (np.triu(weights, 1) == 0).all()
    other = np.array(tokens)
    other[:, 5:] = 0
    after, _ = run(causal, layer, other)
    np.testing.assert_allclose(before[:, :5], np.asarray(after)[:, :5], rtol=1e-5, atol=1e-6)


def test_float64_parameters_compute_in_float64(layer, tokens):
    with jax.enable_x64(True):
        graphdef, state = nnx.split(layer)
        out, weights = call(nnx.merge(graphdef, as_float64(state)), as_float64(tokens))
        assert out.dtype == weights.dtype == jnp.float64


def test_gradients_agree_with_central_differences(layer, tokens):
    """Checks float64 gradients with a key mask and one query, like the fine-grained layer's."""
    with jax.enable_x64(True):
        graphdef, state = nnx.split(layer)
        wide, inputs = as_float64((state, tokens))
        mask = np.ones((2, 9), bool)
        mask[:, 4:7] = False

        @jax.jit
        def loss(state):
            out, _ = nnx.merge(graphdef, state)(inputs, jnp.asarray(mask), 1)
            return jnp.sum(jnp.sin(out))

        # The default step, 1e-4, has an error of 2e-6, which is proportional to its square.
        check_grads(loss, (wide,), order=1, modes=["rev"], eps=1e-5, rtol=1e-6)


def test_layer_norm_by_hand():
    norm = LayerNorm(3, eps=0.5)
    x = np.array([1.0, 2.0, 6.0])
    expected = (x - 3) / np.sqrt(np.mean((x - 3) ** 2) + 0.5)
    np.testing.assert_allclose(norm(jnp.asarray(x[None], jnp.float32))[0], expected, rtol=1e-6)


def test_quick_gelu_by_hand():
    np.testing.assert_allclose(quick_gelu(jnp.float32(1.5)), 1.5 / (1 + np.exp(-1.702 * 1.5)))


def test_gradient_of_quick_gelu_by_hand():
    x = np.linspace(-6, 6, 25)
    gate = 1 / (1 + np.exp(-1.702 * x))
    expected = gate + 1.702 * x * gate**2 * np.exp(-1.702 * x)
    with jax.enable_x64(True):
        found = jax.jit(jax.vmap(jax.grad(quick_gelu)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_gradient_of_attention_weights_by_the_jacobian_of_softmax():
    """Checks diag(w) - w·wᵀ for each query, and that no gradient flows through a masked key."""
    rng = np.random.default_rng(3)
    queries, keys = rng.normal(size=(2, 2, 3, 4)), rng.normal(size=(2, 2, 5, 4))
    gradient, mask = rng.normal(size=(2, 2, 3, 5)), np.ones((2, 1, 5), bool)
    mask[1, 0, 2] = False
    of_queries, of_keys = np.zeros_like(queries), np.zeros_like(keys)
    expected = np.zeros_like(gradient)
    for image, head, query in np.ndindex(2, 2, 3):
        scores = keys[image, head] @ queries[image, head, query]
        weights = np.exp(scores) * mask[image, 0]
        weights /= weights.sum()
        jacobian = np.diag(weights) - np.outer(weights, weights)
        of_scores = jacobian @ gradient[image, head, query]
        of_queries[image, head, query] = of_scores @ keys[image, head]
        of_keys[image, head] += np.outer(of_scores, queries[image, head, query])
        expected[image, head, query] = weights
    with jax.enable_x64(True):

        @jax.jit
        def both_ways(*arrays):
            found, pull = jax.vjp(attention_weights, *arrays)
            return found, pull(jnp.asarray(gradient))

        found, back = both_ways(queries, keys, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(back[0], of_queries, atol=1e-14)
    np.testing.assert_allclose(back[1], of_keys, atol=1e-14)
    assert (np.asarray(back[1])[1, :, 2] == 0).all()


def test_one_array_is_kept_of_quick_gelu():
    x = jnp.ones((3, 5))
    kept = jax.eval_shape(lambda x: jax.vjp(quick_gelu, x)[1], x)
    assert [leaf.shape for leaf in jax.tree.leaves(kept)] == [x.shape]


def test_attention_keeps_its_weights_once_and_in_the_compute_type():
    queries, keys = jnp.ones((2, 2, 3, 4), jnp.bfloat16), jnp.ones((2, 2, 5, 4), jnp.bfloat16)
    kept = jax.eval_shape(lambda *inputs: jax.vjp(attention_weights, *inputs)[1], queries, keys)
    leaves = jax.tree.leaves(kept)
    assert sorted(leaf.shape for leaf in leaves) == sorted(
        [queries.shape, keys.shape, (2, 2, 3, 5)]
    )
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("shape, of_right", [((), ()), ((2, 3), (2, 3)), ((2, 3), ())])
def test_products_and_their_gradients_are_rounded_once(shape, of_right):
    rng = np.random.default_rng(5)
    left, right = rng.normal(size=(*shape, 5, 7)), rng.normal(size=(*of_right, 7, 4))
    gradient = rng.normal(size=(*shape, 5, 4))
    rounded = [array.astype(jnp.bfloat16) for array in (left, right, gradient)]

    @jax.jit
    def both_ways(left, right, gradient):
        product, pull = jax.vjp(matmul, left, right)
        return product, *pull(gradient)

    found = both_ways(*rounded)
    left, right, gradient = (array.astype(np.float64) for array in rounded)
    by_right = left.mT @ gradient
    summed = tuple(range(len(shape) - len(of_right)))
    exact = [left @ right, gradient @ right.mT, by_right.sum(axis=summed)]
    for ours, expected in zip(found, exact, strict=True):
        assert ours.dtype == jnp.bfloat16
        expected = expected.astype(jnp.bfloat16).astype(np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), expected, rtol=2**-8, atol=1e-6)


def test_products_of_a_bfloat16_layer_have_the_form_that_is_fast_on_cpus(layer, tokens):
    """Checks bfloat16 operands, a float32 result, and operands that are not transposed before."""

    def loss(tokens):
        updated, weights = layer(tokens)
        return updated.astype(jnp.float32).sum() + weights.astype(jnp.float32).sum()

    program = jax.make_jaxpr(jax.grad(loss))(tokens.astype(jnp.bfloat16))
    products = list(equations(program.jaxpr, "dot_general"))
    assert len(products) > 16  # six of weights, two of attention, and those of gradients
    for product in products:
        assert {operand.aval.dtype for operand in product.invars} == {jnp.dtype(jnp.bfloat16)}
        assert [result.aval.dtype for result in product.outvars] == [jnp.float32]
    transposes = equations(program.jaxpr, "transpose")
    assert all(equation.params["permutation"] == (0, 2, 1, 3) for equation in transposes)


def equations(jaxpr, name):
    """Yields the equations of a program, and of those inside it, with this primitive."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == name:
            yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from equations(inner, name)


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="width of 10 cannot be split into 3"):
        TransformerConfig(10, 1, 3, 20)
