"""One layer of the attention roll-out as one kernel, which writes no attention weights."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from fgvpl_jax.clip.fused_attention import trial_succeeds
from fgvpl_jax.visual_prompt.attention_map import plain_layer_down

MOST_SCORES = 16_384  # of one block: 64 KiB in float32, which fit into a GPU's registers
LEAST_ROWS = 16  # of a product in Triton
INTERPRET = False


def fused_layer_down(
    row: Float[Array, "b h t"], pair: tuple[Float[Array, "b h t c"], Float[Array, "b h t c"]]
) -> Float[Array, "b h t"]:
    """Returns row · softmax(queries · keysᵀ) for each head, in float32.

    One program per image and head keeps the keys and adds up one block of queries after the other.

    Args:
        row: Row of the product of the layers above, in float32.
        pair: Scaled queries, and keys.
    """
    queries, keys = pair
    batch, heads, tokens, width = queries.shape
    columns = pl.next_power_of_2(tokens)
    rows = max(LEAST_ROWS, min(columns, MOST_SCORES // columns))
    vector = pl.BlockSpec((None, None, tokens), lambda image, head: (image, head, 0))
    matrix = pl.BlockSpec((None, None, tokens, width), lambda image, head: (image, head, 0, 0))
    return pl.pallas_call(
        partial(_add_up_blocks, tokens=tokens, rows=rows, columns=columns),
        out_shape=jax.ShapeDtypeStruct((batch, heads, tokens), jnp.float32),
        grid=(batch, heads),
        in_specs=[vector, matrix, matrix],
        out_specs=vector,
        compiler_params=triton.CompilerParams(num_warps=8),
        interpret=INTERPRET,
    )(row, queries, keys)


def _add_up_blocks(
    row: Any, queries: Any, keys: Any, result: Any, *, tokens: int, rows: int, columns: int
) -> None:
    is_key = jnp.arange(columns) < tokens
    key = triton.load(keys.at[pl.ds(0, columns), :], mask=is_key[:, None], other=0)

    def add_block(number: Array, total: Array) -> Array:
        place = pl.ds(number * rows, rows)
        is_query = number * rows + jnp.arange(rows) < tokens
        query = triton.load(queries.at[place, :], mask=is_query[:, None], other=0)
        share = triton.load(row.at[place], mask=is_query, other=0)
        scores = jnp.where(is_key[None], triton.dot(query, key, trans_b=True), -jnp.inf)
        weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
        return total + jnp.sum((share / weights.sum(axis=1))[:, None] * weights, axis=0)

    blocks = pl.cdiv(tokens, rows)
    total = jax.lax.fori_loop(0, blocks, add_block, jnp.zeros(columns, jnp.float32))
    triton.store(result.at[pl.ds(0, columns)], total, mask=is_key)


@cache
def is_supported(shape: tuple[int, ...]) -> bool:
    """Returns whether a trial of `fused_layer_down` in bfloat16 succeeds on this device.

    Args:
        shape: Numbers of heads and tokens, and the width of a head.
    """
    rng = np.random.default_rng(0)
    row = rng.uniform(size=(1, *shape[:2])).astype(np.float32)
    pair = rng.normal(scale=0.5, size=(2, 1, *shape)).astype(jnp.bfloat16)
    return trial_succeeds(
        "the fused attention roll-out",
        lambda row, *pair: fused_layer_down(row, pair),
        lambda row, *pair: plain_layer_down(row, pair),
        [row, *pair],
    )
