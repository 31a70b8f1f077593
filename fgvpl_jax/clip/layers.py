"""CLIP's transformer layer, frozen, which also returns its attention weights."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip.config import TransformerConfig
from fgvpl_jax.clip.fused_attention import fused_attention, is_fused
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

INIT_STD = 0.02

Axes = tuple[int, ...]


@jax.custom_vjp
def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns x · sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_and_slope(x: Array) -> tuple[Array, Array]:
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


# Keeps only the slope for the backward pass; JAX's own derivative would keep x and two more arrays.
quick_gelu.defvjp(_quick_gelu_and_slope, lambda slope, gradient: (gradient * slope,))


# Keys are transformers' values of `hidden_act`.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


@jax.custom_vjp
def matmul(left: Float[Array, "*b j"], right: Float[Array, "*c j k"]) -> Float[Array, "*b k"]:
    """Returns left · right in the operands' type, like its gradients.

    Args:
        left: Matrices.
        right: As many matrices, or one for all of them.
    """
    return _rounded_contract(left, (left.ndim - 1,), right, (right.ndim - 2,), right.ndim - 2)


def _matmul_forward(
    left: CustomVJPPrimal, right: CustomVJPPrimal
) -> tuple[Array, tuple[Array | None, Array]]:
    # The operand of a frozen matrix is not kept.
    kept = left.value if right.perturbed else None
    return matmul(left.value, right.value), (kept, right.value)


def _matmul_backward(
    kept: tuple[Array | None, Array], gradient: Array | SymbolicZero
) -> tuple[Array | None, Array | None]:
    left, right = kept
    if isinstance(gradient, SymbolicZero):
        return None, None
    shape, shared = (*gradient.shape[:-1], right.shape[-2]), right.ndim - 2
    if not shared:  # with more axes, XLA would copy the transposed matrix
        gradient = gradient.reshape(-1, gradient.shape[-1])
        left = None if left is None else left.reshape(-1, left.shape[-1])
    rows, last = (gradient.ndim - 2,), (gradient.ndim - 1,)
    of_left = _rounded_contract(gradient, last, right, (right.ndim - 1,), shared).reshape(shape)
    of_right = None if left is None else _rounded_contract(left, rows, gradient, rows, shared)
    return of_left, of_right


matmul.defvjp(_matmul_forward, _matmul_backward, symbolic_zeros=True)


def _rounded_contract(
    left: Array, left_axes: Axes, right: Array, right_axes: Axes, shared: int
) -> Array:
    # XLA has fast bfloat16 products on CPUs only with a float32 result, and only where no operand
    # is transposed; it computes all others in float32, after converting the operands.
    on_cpu = jax.default_backend() == "cpu"
    dtype = jnp.promote_types(left.dtype, jnp.float32) if on_cpu else left.dtype
    return _contract(left, left_axes, right, right_axes, shared, dtype).astype(left.dtype)


def _contract(
    left: Array, left_axes: Axes, right: Array, right_axes: Axes, shared: int, dtype: DTypeLike
) -> Array:
    """Returns the sum over pairs of axes; the first `shared` axes of the operands are the same."""
    batch = tuple(range(shared))
    return jax.lax.dot_general(
        left, right, ((left_axes, right_axes), (batch, batch)), preferred_element_type=dtype
    )


class Linear(nnx.Module):
    """x·kernel + bias with a kernel [in, out], computed in the type of x."""

    def __init__(self, dim_in: int, dim_out: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = Frozen(nnx.initializers.normal(INIT_STD)(rngs.params(), (dim_in, dim_out)))
        self.bias = Frozen(jnp.zeros((dim_out,))) if use_bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Returns x·kernel + bias."""
        y = matmul(x, jnp.asarray(self.kernel[...], x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last axis, computed in float32 at least."""

    def __init__(self, dim: int, eps: float):
        self.scale = Frozen(jnp.ones((dim,)))
        self.bias = Frozen(jnp.zeros((dim,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Returns (x - mean) / sqrt(variance + eps) · scale + bias."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head attention with scale 1/sqrt(d/h).

    Eq. 5 prints sqrt(H), but CLIP's weights were trained with 1/sqrt(d/h).

    Args:
        width: Width d of the tokens.
        num_heads: Number of heads h.
        dim_out: Width of the updates; None for that of the tokens.
        rngs: Random streams.
    """

    def __init__(self, width: int, num_heads: int, *, dim_out: int | None = None, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query, self.key, self.value = (Linear(width, width, rngs=rngs) for _ in range(3))
        self.out = Linear(width, dim_out or width, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        mask: Bool[Array, "#b #q t"] | None = None,
        num_queries: int | None = None,
    ) -> tuple[Float[Array, "b q e"], Float[Array, "b h q t"]]:
        """Attends from the first `num_queries` tokens to all tokens.

        Args:
            tokens: Normalised tokens.
            mask: True where a query may attend to a key; None for everywhere.
            num_queries: Number of tokens, from the first, that are queries; None for all.
        Returns:
            Updates of the query tokens, and the attention weights, both in the tokens' type. The
            weight of a masked key is exactly 0.
        """
        return self.attend(tokens[:, :num_queries], tokens, mask)

    def attend(
        self,
        readers: Float[Array, "b q d"],
        tokens: Float[Array, "b t d"],
        mask: Bool[Array, "#b #q t"] | None = None,
    ) -> tuple[Float[Array, "b q e"], Float[Array, "b h q t"]]:
        """Attends from other tokens, the readers, to all tokens; see `__call__`."""
        queries, keys = self._queries(readers), self._keys(tokens)
        value = self._heads(self.value(tokens))
        weights = attention_weights(queries, keys, mask)
        # XLA computes no weights that nothing reads.
        fused = mask is None and readers.shape == tokens.shape and self.is_fused(tokens)
        mixed = fused_attention(queries, keys, value) if fused else matmul(weights, value)
        mixed = mixed.swapaxes(1, 2)
        return self.out(mixed.reshape(*mixed.shape[:2], -1)), weights

    def from_class_token(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b 1 d"]:
        """Returns the first token's update without computing the key or value of any token.

        The kernel of the keys is applied to the query and that of the values to the weighted mean
        of the tokens, for each head. This takes 8·d² + 4·h·t·d FLOPs instead of 4·(t + 1)·d², and
        equals the call with one query up to rounding. The keys' bias changes no weight.

        Args:
            tokens: Normalised tokens.
            key_mask: False for tokens that the first one may not attend to; None for no such
                token.
        """
        query, dtype = self._heads(self.query(tokens[:, :1])), tokens.dtype
        query = query[:, :, 0] * (1 / math.sqrt(query.shape[-1]))
        by_head = (tokens.shape[-1], self.num_heads, -1)
        key, value = (
            linear.kernel[...].astype(dtype).reshape(by_head) for linear in (self.key, self.value)
        )
        # All heads read the same tokens, so they are the queries of a single head.
        queries = jnp.einsum("bhc,dhc->bhd", query, key)[:, None]
        mask = None if key_mask is None else key_mask[:, None]
        mixed = attention_weights(queries, tokens[:, None], mask)[:, 0] @ tokens
        values = jnp.einsum("bhd,dhc->bhc", mixed, value).reshape(tokens.shape[0], 1, -1)
        if self.value.bias is not None:
            values += self.value.bias[...].astype(dtype)
        return self.out(values)

    def is_fused(self, tokens: Float[Array, "b t d"]) -> bool:
        """Returns whether the tokens attend to each other without weights in memory."""
        batch, count, width = tokens.shape
        return is_fused((batch, self.num_heads, count, width // self.num_heads), tokens.dtype)

    def queries_and_keys(
        self, tokens: Float[Array, "b t d"], num_queries: int | None = None
    ) -> tuple[Float[Array, "b h q c"], Float[Array, "b h t c"]]:
        """Returns scaled queries, and keys, of normalised tokens for `attention_weights`."""
        return self._queries(tokens[:, :num_queries]), self._keys(tokens)

    def _queries(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        query = self._heads(self.query(tokens))
        return query * (1 / math.sqrt(query.shape[-1]))

    def _keys(self, tokens: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        return self._heads(self.key(tokens))

    # Heads come before tokens, and weights are the left operand of the product with values. In the
    # other order, XLA takes up to 2.6 times as long for a layer's attention on a CPU.
    def _heads(self, x: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


@jax.custom_vjp
def attention_weights(
    queries: Float[Array, "b h q c"],
    keys: Float[Array, "b h k c"],
    mask: Bool[Array, "#b #q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """Returns the weight of each key for each query (Eq. 5); the softmax is in float32 at least.

    Args:
        queries: Queries, already scaled.
        keys: Keys of the same number of heads.
        mask: True where a query may attend to a key; elsewhere the weight is exactly 0.
    Returns:
        The weights in the queries' type.
    """
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    scores = _contract(queries, (3,), keys, (3,), 2, wide)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
    # Without the barrier, XLA keeps the float32 scores and recomputes the weights at every use.
    return jax.lax.optimization_barrier(weights)


def _attention_weights_forward(
    queries: Array, keys: Array, mask: Array | None = None
) -> tuple[Array, tuple[Array, Array, Array]]:
    weights = attention_weights(queries, keys, mask)
    return weights, (queries, keys, weights)


def _attention_weights_backward(
    kept: tuple[Array, Array, Array], gradient: Array
) -> tuple[Array, Array, None]:
    queries, keys, weights = kept
    wide = jnp.promote_types(weights.dtype, jnp.float32)
    product = weights.astype(wide) * gradient.astype(wide)
    of_scores = product - weights.astype(wide) * product.sum(axis=-1, keepdims=True)
    of_scores = of_scores.astype(weights.dtype)
    return matmul(of_scores, keys), _rounded_contract(of_scores, (2,), queries, (2,), 2), None


# Keeps only queries, keys and weights for the backward pass; by default, the exponentials and their
# sums broadcast over all keys are kept too. The scores' gradient has the compute type, so that its
# products are as fast as the others.
attention_weights.defvjp(_attention_weights_forward, _attention_weights_backward)


class TransformerLayer(nnx.Module):
    """One pre-norm block, as in CLIP's training (the paper's Eqs. 3-4 are post-norm)."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        if config.activation not in ACTIVATIONS:
            raise UserError(
                f"hidden_act {config.activation!r} is not supported: only {sorted(ACTIVATIONS)}"
            )
        self.norm1 = LayerNorm(config.width, config.layer_norm_eps)
        self.attention = Attention(config.width, config.num_heads, rngs=rngs)
        self.norm2 = LayerNorm(config.width, config.layer_norm_eps)
        self.fc1 = Linear(config.width, config.mlp_width, rngs=rngs)
        self.fc2 = Linear(config.mlp_width, config.width, rngs=rngs)
        self.activation = config.activation

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        key_mask: Bool[Array, "b t"] | None = None,
        num_queries: int | None = None,
        *,
        causal: bool = False,
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b h q t"]]:
        """Runs the block.

        Args:
            tokens: All tokens; each can be a key.
            key_mask: False for tokens that no token may attend to; None for no such token.
            num_queries: Number of tokens, from the first, to compute; equal to those rows of the
                full block. None for all.
            causal: Whether a token attends only to itself and earlier tokens.
        Returns:
            The first `num_queries` tokens after the block, and their attention weights.
        """
        mask = None if key_mask is None else key_mask[:, None, :]
        if causal:
            length = tokens.shape[1]
            past = jnp.tril(jnp.ones((1, length, length), bool))[:, :num_queries]
            mask = past if mask is None else mask & past
        update, weights = self.attention(self.norm1(tokens), mask, num_queries)
        return self._after_attention(tokens[:, :num_queries] + update), weights

    def class_token(
        self, tokens: Float[Array, "b t d"], key_mask: Bool[Array, "b t"] | None = None
    ) -> Float[Array, "b 1 d"]:
        """Returns the first token after the block; see `Attention.from_class_token`."""
        update = self.attention.from_class_token(self.norm1(tokens), key_mask)
        return self._after_attention(tokens[:, :1] + update)

    def _after_attention(self, tokens: Float[Array, "b q d"]) -> Float[Array, "b q d"]:
        hidden = ACTIVATIONS[self.activation](self.fc1(self.norm2(tokens)))
        return tokens + self.fc2(hidden)

    def queries_and_keys(
        self, tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b h t c"], Float[Array, "b h t c"]]:
        """Returns the queries and keys from which `attention_weights` computes the block's weights.

        They are those of the block without a mask.
        """
        return self.attention.queries_and_keys(self.norm1(tokens))
