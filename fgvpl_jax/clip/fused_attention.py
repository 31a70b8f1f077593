"""Attention as one kernel of cuDNN, which writes no attention weights to memory."""

from functools import cache
from typing import Literal

import jax
import jax.numpy as jnp
from absl import logging
from jax.typing import DTypeLike
from jaxtyping import Array, Float

IMPLEMENTATION: Literal["xla", "cudnn"] = "cudnn"
HALF_TYPES = ("bfloat16", "float16")
TOLERANCE = 0.02  # of the largest entry; a rounding of bfloat16 is 0.004


def is_fused(batch: object, heads: int, tokens: int, width: int, dtype: DTypeLike) -> bool:
    """Returns whether `fused_attention` serves queries, keys and values of this shape.

    It serves half types on GPUs where a trial of the same shape succeeds.

    Args:
        batch: Number of images. If it is symbolic, the program is exported, also to other
            platforms, and its attention is not fused.
        heads: Number of heads.
        tokens: Number of tokens.
        width: Width of a head.
        dtype: Type of the tokens.
    """
    name = jnp.dtype(dtype).name
    return (
        isinstance(batch, int)
        and jax.default_backend() == "gpu"
        and name in HALF_TYPES
        and _trial_succeeds(heads, tokens, width, name)
    )


def fused_attention(
    queries: Float[Array, "b h t c"], keys: Float[Array, "b h t c"], values: Float[Array, "b h t c"]
) -> Float[Array, "b h t c"]:
    """Returns softmax(queries · keysᵀ) · values for queries that are already scaled (Eq. 5)."""
    batch, _, tokens, _ = queries.shape
    heads_last = [each.swapaxes(1, 2) for each in (queries, keys, values)]
    lengths = None
    if tokens % 2:  # JAX refuses to differentiate cuDNN's attention of an odd number of tokens
        heads_last = [jnp.pad(each, ((0, 0), (0, 1), (0, 0), (0, 0))) for each in heads_last]
        lengths = jnp.full(batch, tokens, jnp.int32)
    mixed = jax.nn.dot_product_attention(
        *heads_last,
        scale=1.0,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=IMPLEMENTATION,
    )
    return mixed[:, :tokens].swapaxes(1, 2)


def plain_attention(
    queries: Float[Array, "b h t c"], keys: Float[Array, "b h t c"], values: Float[Array, "b h t c"]
) -> Float[Array, "b h t c"]:
    """Returns what `fused_attention` does, by a product, a softmax and a product."""
    scores = jnp.einsum("bhqc,bhkc->bhqk", queries, keys, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores, axis=-1).astype(values.dtype) @ values


@cache
def _trial_succeeds(heads: int, tokens: int, width: int, dtype: str) -> bool:
    """Returns whether cuDNN computes such an attention and its gradients as plain products do.

    Which shapes it supports depends on its version, the driver and the card. It refuses the others
    when a program is traced, compiled or run, each time by another exception.
    """
    with jax.ensure_compile_time_eval():
        *inputs, gradient = (
            jax.random.normal(key, (1, heads, tokens, width)).astype(dtype)
            for key in jax.random.split(jax.random.key(0), 4)
        )

        @jax.jit
        def largest_difference() -> Array:
            ours, theirs = (
                jax.tree.leaves((jax.vjp(f, *inputs)[0], jax.vjp(f, *inputs)[1](gradient)))
                for f in (fused_attention, plain_attention)
            )
            wide = [(a.astype(float), b.astype(float)) for a, b in zip(ours, theirs, strict=True)]
            return jnp.stack([abs(a - b).max() / abs(b).max() for a, b in wide]).max()

        try:
            difference = float(largest_difference())
        except Exception as error:
            logging.info("attention is not fused on this GPU: %s", error)
            return False
    if not difference <= TOLERANCE:
        logging.warning(
            "cuDNN's attention differs from plain products by %.2g of the largest entry on this "
            "GPU, so that it is not used",
            difference,
        )
        return False
    return True
