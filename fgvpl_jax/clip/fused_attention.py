"""Attention as one kernel of cuDNN, which writes no attention weights to memory."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.typing import DTypeLike
from jaxtyping import Array, Float

IMPLEMENTATION: Literal["xla", "cudnn"] = "cudnn"
TOLERANCE = 0.02  # of the largest entry; a rounding of bfloat16 is 0.004


def is_fused(shape: Sequence[Any], dtype: DTypeLike) -> bool:
    """Returns whether `fused_attention` serves queries, keys and values of this shape.

    It serves bfloat16 on one GPU where a trial of the same shape succeeds. Over several GPUs, whose
    arrays are split, it was not tried.

    Args:
        shape: Numbers of images, heads and tokens, and the width of a head. If the number of images
            is symbolic, the program is exported, also to other platforms, and its attention is not
            fused.
        dtype: Type of the tokens.
    """
    return may_fuse(shape, dtype) and _attention_succeeds(tuple(shape[1:]))


def may_fuse(shape: Sequence[Any], dtype: DTypeLike) -> bool:
    """Returns whether kernels for GPUs are worth a trial; see `is_fused`."""
    return (
        isinstance(shape[0], int)
        and jax.default_backend() == "gpu"
        and jax.device_count() == 1
        and jnp.dtype(dtype) == jnp.bfloat16
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
def _attention_succeeds(shape: tuple[int, ...]) -> bool:
    def with_gradients(function: Callable[..., Array]) -> Callable[..., Any]:
        def outputs(*inputs: Array) -> Any:
            output, pull = jax.vjp(function, *inputs[:3])
            return output, pull(inputs[3])

        return outputs

    inputs = np.random.default_rng(0).normal(scale=0.5, size=(4, 1, *shape))
    return trial_succeeds(
        "cuDNN's attention",
        with_gradients(fused_attention),
        with_gradients(plain_attention),
        list(inputs.astype(jnp.bfloat16)),
    )


def trial_succeeds(
    name: str,
    fused: Callable[..., Any],
    plain: Callable[..., Any],
    inputs: Sequence[np.ndarray],
) -> bool:
    """Returns whether a fused computation runs on this device and agrees with a plain one.

    Which shapes are supported depends on the versions of the libraries, the driver and the card.
    The others are refused when a program is traced, compiled or run, each time by another
    exception.

    Args:
        name: Name of the fused computation, for the log.
        fused: Function of the inputs.
        plain: Function that returns the same.
        inputs: Arrays to try them on.
    """

    @jax.jit
    def largest_difference(*inputs: Array) -> Array:
        pairs = zip(
            *(jax.tree.leaves(function(*inputs)) for function in (fused, plain)), strict=True
        )
        wide = [(a.astype(jnp.float32), b.astype(jnp.float32)) for a, b in pairs]
        return jnp.stack([abs(a - b).max() / abs(b).max() for a, b in wide]).max()

    try:
        with jax.ensure_compile_time_eval():  # the caller may be tracing a program
            difference = float(largest_difference(*inputs))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        logging.warning("%s is not used, because it does not run on this GPU: %s", name, reason)
        return False
    if not difference <= TOLERANCE:
        logging.warning(
            "%s is not used, because it differs from plain products by %.2g of the largest entry "
            "on this GPU",
            name,
            difference,
        )
        return False
    return True
