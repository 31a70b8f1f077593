"""CLIP's transformer layer, frozen, with its attention weights in the open."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip.config import TransformerConfig
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen

INIT_STD = 0.02


@jax.custom_vjp
def quick_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """X · sigmoid(1.702 x), OpenAI's approximation of GELU."""
    return x * jax.nn.sigmoid(1.702 * x)


def _quick_gelu_and_slope(x: Array) -> tuple[Array, Array]:
    gate = jax.nn.sigmoid(1.702 * x)
    return x * gate, gate * (1 + 1.702 * x * (1 - gate))


# The slope alone is kept for the way back; derived by JAX, it would be x and two arrays more.
quick_gelu.defvjp(_quick_gelu_and_slope, lambda slope, gradient: (gradient * slope,))


# Under transformers' names of `hidden_act`.
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}


class Linear(nnx.Module):
    """x·kernel + bias, kernel [in, out]; computed in the type of x."""

    def __init__(self, dim_in: int, dim_out: int, *, use_bias: bool = True, rngs: nnx.Rngs):
        self.kernel = Frozen(nnx.initializers.normal(INIT_STD)(rngs.params(), (dim_in, dim_out)))
        self.bias = Frozen(jnp.zeros((dim_out,))) if use_bias else None

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """x·kernel + bias."""
        y = x @ self.kernel[...].astype(x.dtype)
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """Over the last axis, in float32 at least."""

    def __init__(self, dim: int, eps: float):
        self.scale = Frozen(jnp.ones((dim,)))
        self.bias = Frozen(jnp.zeros((dim,)))
        self.eps = eps

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """(x - mean) / sqrt(variance + eps) · scale + bias."""
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(variance + self.eps)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class Attention(nnx.Module):
    """Multi-head self-attention, scale 1/sqrt(d/h) (Eq. 5 prints sqrt(H); the weights decide)."""

    def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (
            Linear(width, width, rngs=rngs) for _ in range(4)
        )

    def __call__(
        self,
        tokens: Float[Array, "b t d"],
        mask: Bool[Array, "#b #q t"] | None = None,
        num_queries: int | None = None,
    ) -> tuple[Float[Array, "b q d"], Float[Array, "b h q t"]]:
        """Attends from the first `num_queries` tokens to all.

        Args:
            tokens: Normalised tokens.
            mask: True where a query may see a key; None for everywhere.
            num_queries: How many of the first tokens ask; None for all.
        Returns:
            Updates of the asking tokens, and the weights, in the tokens' type; a masked key's is
            exactly 0.
        """
        query, key = self.queries_and_keys(tokens, num_queries)
        value = self._heads(self.value(tokens))
        weights = attention_weights(query, key, mask)
        mixed = (weights @ value).swapaxes(1, 2)
        return self.out(mixed.reshape(*mixed.shape[:2], -1)), weights

    def queries_and_keys(
        self, tokens: Float[Array, "b t d"], num_queries: int | None = None
    ) -> tuple[Float[Array, "b h q c"], Float[Array, "b h t c"]]:
        """Of normalised tokens, for `attention_weights`; queries carry the scale."""
        query = self._heads(self.query(tokens[:, :num_queries]))
        return query * (1 / math.sqrt(query.shape[-1])), self._heads(self.key(tokens))

    # Heads before tokens, and weights on the left of values: XLA on a CPU takes up to 2.6 times as
    # long for a layer's attention the other way round.
    def _heads(self, x: Float[Array, "b t d"]) -> Float[Array, "b h t c"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1).swapaxes(1, 2)


@jax.custom_vjp
def attention_weights(
    queries: Float[Array, "b h q c"],
    keys: Float[Array, "b h k c"],
    mask: Bool[Array, "#b #q k"] | None = None,
) -> Float[Array, "b h q k"]:
    """How much each query attends to each key (Eq. 5); softmax in float32 at least.

    Args:
        queries: With the scale.
        keys: As many heads.
        mask: True where a query may see a key, whose weight is exactly 0 elsewhere.
    Returns:
        The weights in the queries' type.
    """
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    scores = jnp.matmul(queries, keys.mT, preferred_element_type=wide)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(queries.dtype)
    # Otherwise XLA keeps the scores, in float32, and makes weights of them wherever they are read.
    return jax.lax.optimization_barrier(weights)


def _attention_weights_forward(queries, keys, mask=None):
    weights = attention_weights(queries, keys, mask)
    return weights, (queries, keys, weights)


def _attention_weights_backward(kept, gradient):
    queries, keys, weights = kept
    wide = jnp.promote_types(weights.dtype, jnp.float32)
    product = weights.astype(wide) * gradient.astype(wide)
    of_scores = product - weights.astype(wide) * product.sum(axis=-1, keepdims=True)
    of_scores = of_scores.astype(weights.dtype)
    return of_scores @ keys, of_scores.mT @ queries, None


# The weights alone are kept for the way back; left to itself, XLA also keeps the exponentials and
# their sums spread over all keys. And the scores' gradient takes the compute type, so that its
# products are as fast as the others.
attention_weights.defvjp(_attention_weights_forward, _attention_weights_backward)


class TransformerLayer(nnx.Module):
    """One pre-norm block, as CLIP was trained (the paper's Eqs. 3-4 write post-norm)."""

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
            tokens: All tokens; each may be a key.
            key_mask: False where a token is attended to by nobody.
            num_queries: Compute the first tokens only; equal to those rows of the full block.
            causal: Whether a token sees itself and earlier ones only.
        Returns:
            The first `num_queries` tokens after the block, and their attention weights.
        """
        mask = None if key_mask is None else key_mask[:, None, :]
        if causal:
            length = tokens.shape[1]
            past = jnp.tril(jnp.ones((1, length, length), bool))[:, :num_queries]
            mask = past if mask is None else mask & past
        update, weights = self.attention(self.norm1(tokens), mask, num_queries)
        tokens = tokens[:, :num_queries] + update
        hidden = ACTIVATIONS[self.activation](self.fc1(self.norm2(tokens)))
        return tokens + self.fc2(hidden), weights

    def queries_and_keys(
        self, tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b h t c"], Float[Array, "b h t c"]]:
        """What `attention_weights` makes the block's weights of, without a mask."""
        return self.attention.queries_and_keys(self.norm1(tokens))
