"""Attention roll-out: the significance of each image patch for the class token."""

from collections.abc import Sequence
from functools import partial, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fgvpl_jax.clip.fused_attention import may_fuse
from fgvpl_jax.clip.layers import attention_weights
from fgvpl_jax.defaults import NUM_PROMPTS
from fgvpl_jax.errors import UserError

# Of a layer: its attention weights [b, h, t, t], or the queries and keys, each [b, h, t, c], that
# they can be recomputed from.
KeptAttention = Array | tuple[Array, Array]


class RollOut(NamedTuple):
    """Variant of the attention roll-out.

    Attributes:
        residual: Share r of the identity in (1 - r)·A + r·I, which replaces each layer's A.
            Eq. 6 has 0; 0.5 follows a token along the layer's residual connection.
        num_layers: Number of layers that are rolled out, counted down from L-1; None for all.
    """

    residual: float = 0.0
    num_layers: int | None = None


ROLL_OUTS = {
    "product": RollOut(),
    "residual": RollOut(residual=0.5),
    "last_3_residual": RollOut(residual=0.5, num_layers=3),
    "last": RollOut(num_layers=1),
}


def attention_map(
    attentions: Sequence[Float[Array, "b h t t"]],
    num_prompts: int = NUM_PROMPTS,
    *,
    residual: float = 0.0,
) -> Float[Array, "b n"]:
    """Returns the significance of each image patch for the class token (Eqs. 5-7 of FG-VPL).

    Args:
        attentions: Row-stochastic self-attention weights of layers 1..L-1, first layer first.
        num_prompts: Number of prompt tokens at the end of the sequence; their columns are dropped.
        residual: See `RollOut`.
    Returns:
        Unnormalised float32 scores in row-major patch order, summed over heads. They are
        accumulated in float32 whatever the type of the weights, and no gradient flows through
        them.
    Raises:
        UserError: If there is no layer, or no patch column would remain.
    """
    if not attentions:
        raise UserError("attention_map needs the attention weights of at least one layer")
    num_tokens = attentions[0].shape[-1]
    num_patches = num_tokens - 1 - num_prompts
    if num_prompts < 0 or num_patches < 1:
        raise UserError(
            f"{num_tokens} tokens less the class token and {num_prompts} prompts leave "
            f"{num_patches} patches: need at least 1, and no negative number of prompts"
        )
    return class_token_row(attentions, residual)[..., 1 : 1 + num_patches].sum(axis=1)


def class_token_row(
    attentions: Sequence[KeptAttention],
    residual: float = 0.0,
    row: Float[Array, "b h t"] | None = None,
) -> Float[Array, "b h t"]:
    """Returns the class token's row of the product of attention weights, for each head.

    Only the class row of A_{L-1} · … · A_2 · A_1 (Eq. 6, per head) is needed, so a row vector is
    multiplied from the top layer down: O(l·h·t²) per image instead of O(l·h·t³).

    With queries and keys, 2·l·t·d numbers per image are kept until the roll-out (twice that while
    they are stacked) and the weights of one layer at a time, instead of all l·h·t² weights.

    Args:
        attentions: Weights of at least one layer, first layer first; or queries and keys of each.
        residual: See `RollOut`.
        row: Row of the product of the layers above these; None if there is no layer above.
    """
    lower = jax.lax.stop_gradient(list(attentions))
    if row is None:
        row = _class_token_row_of(_first_row(lower.pop()), residual)
    if not lower or not isinstance(lower[0], tuple):
        return reduce(partial(one_layer_down, residual=residual), reversed(lower), row)
    # A loop, because XLA starts unrolled layers early and then holds all their weights at once.
    stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *lower)
    return jax.lax.scan(
        lambda row, layer: (one_layer_down(row, layer, residual), None), row, stacked, reverse=True
    )[0]


def weights_of(kept: KeptAttention) -> Float[Array, "b h q t"]:
    """Returns a layer's attention weights, recomputed if its queries and keys were kept."""
    return attention_weights(*kept) if isinstance(kept, tuple) else kept


def _first_row(kept: KeptAttention) -> Float[Array, "b h t"]:
    if isinstance(kept, tuple):
        queries, keys = kept
        kept = attention_weights(queries[:, :, :1], keys)
    return kept[:, :, 0]


def patch_columns(
    attentions: Sequence[KeptAttention], residual: float = 0.0
) -> Float[Array, "b h t n"]:
    """Returns the patches' columns of the product of attention weights without a prompt.

    `class_token_row` of these and any higher layers is the row of the higher ones times this.

    Args:
        attentions: Weights of at least one layer, first layer first; or queries and keys of each.
        residual: See `RollOut`.
    """
    first, *above = (weights_of(kept).astype(jnp.float32) for kept in attentions)
    identity = jnp.eye(first.shape[-1], dtype=jnp.float32)
    product = ((1 - residual) * first + residual * identity if residual else first)[..., 1:]
    for weights in above:
        below = jnp.matmul(weights, product, precision=jax.lax.Precision.HIGHEST)
        product = (1 - residual) * below + residual * product if residual else below
    return product


def _class_token_row_of(row: Float[Array, "b h t"], residual: float) -> Float[Array, "b h t"]:
    class_token = (jnp.arange(row.shape[-1]) == 0).astype(jnp.float32)[None, None]
    return _with_residual(row.astype(jnp.float32), class_token, residual)


def one_layer_down(
    row: Float[Array, "b h t"], attention: KeptAttention, residual: float
) -> Float[Array, "b h t"]:
    """Returns the row after one more layer, counted down."""
    if isinstance(attention, tuple):
        queries, _ = attention
        if may_fuse(queries.shape, queries.dtype):
            # Imported here, because Pallas takes 0.1 s to import and only GPUs use it.
            from fgvpl_jax.visual_prompt.fused_roll_out import fused_layer_down, is_supported

            if is_supported(queries.shape[1:]):
                return _with_residual(fused_layer_down(row, attention), row, residual)
    return _with_residual(plain_layer_down(row, attention), row, residual)


def plain_layer_down(row: Float[Array, "b h t"], attention: KeptAttention) -> Float[Array, "b h t"]:
    """Returns row · weights for each head."""
    # A product and a sum, because GPUs reduce the precision of float32 matrix products.
    return jnp.sum(row[..., None] * weights_of(attention).astype(jnp.float32), axis=2)


def _with_residual(
    below: Float[Array, "b h t"], row: Float[Array, "#b #h t"], residual: float
) -> Float[Array, "b h t"]:
    return (1 - residual) * below + residual * row if residual else below
