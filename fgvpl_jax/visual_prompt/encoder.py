"""The fine-grained image encoder: CLIP's vision tower, a prompt and a copy of the last layer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float16

from fgvpl_jax.clip import VisionTower
from fgvpl_jax.clip.layers import TransformerLayer
from fgvpl_jax.defaults import ATTENTION_MAP, CONNECTIVITY, NUM_PROMPTS, PROMPT_LAYER
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable, trainable_copy
from fgvpl_jax.visual_prompt.attention_map import (
    ROLL_OUTS,
    KeptAttention,
    class_token_row,
    patch_columns,
)
from fgvpl_jax.visual_prompt.border_contrast import least_contrast, middle, middle_contrast
from fgvpl_jax.visual_prompt.object_mask import object_mask

PROMPT_STD = 0.02
BORDER_CONTRAST = "border_contrast"
ATTENTION_MAPS = (*ROLL_OUTS, BORDER_CONTRAST)


class ImageFeatures(NamedTuple):
    """Features, attention map and object mask of each image; features are raw (not normalised).

    Attributes:
        image: Class token of the original branch, projected: f(x).
        object: Class token of the fine-grained branch, projected: f_O(x).
        object_patches: Mean over the object mask of the original branch's projected patch tokens.
        patches: Mean of all these patch tokens.
        attention_map: Significance of each patch, row-major (Eq. 7), or its border contrast.
        object_mask: True for the patches of the object, row-major; at least one per image, and all
            of them where no object stands out.
    """

    image: Float[Array, "b e"]
    object: Float[Array, "b e"]
    object_patches: Float[Array, "b e"]
    patches: Float[Array, "b e"]
    attention_map: Float[Array, "b n"]
    object_mask: Bool[Array, "b n"]


class TokensBelow(NamedTuple):
    """Everything that the layers below the prompt compute of an image and that is used above them.

    Attributes:
        tokens: Class token and patches that enter the layer at which the prompt joins.
        significance: The part of the map that those layers decide: the whole map [b, n], or the
            patches' columns of the product of their attention weights, times the number of tokens
            t, [b, h, t, n]. None if they decide nothing of it.
    """

    tokens: Float16[Array | np.ndarray, "b t d"]
    significance: Float[Array | np.ndarray, "b *h n"] | None


class _Trace(NamedTuple):
    """Tokens that enter each layer so far, and attention weights or queries and keys of each.

    Entries of layers that were not run are None.
    """

    entering: list[Any]
    attentions: list[Any]


class FGImageEncoder(nnx.Module):
    """Computes image features and object features in one pass (section 3.1, Eqs. 2-9).

    Attributes:
        vision: The frozen tower, shared with the caller.
        prompt: Trainable prompt [m, d], appended to the tokens that enter its layer without a
            position embedding; in the paper after CLIP's pre-LayerNorm.
        fine_grained_layer: Trainable copy of the tower's last layer that shares no storage with
            it.
    """

    def __init__(
        self,
        vision: VisionTower,
        num_prompts: int = NUM_PROMPTS,
        *,
        prompt_layer: int = PROMPT_LAYER,
        attention_map: str = ATTENTION_MAP,
        connectivity: int = CONNECTIVITY,
        compute_dtype: str | None = None,
        rematerialise: bool = False,
        rngs: nnx.Rngs,
    ):
        """Adds the trainable parts to a tower.

        Args:
            vision: A frozen tower of at least two layers.
            num_prompts: Number of prompt tokens m; 0 leaves the tower as it was pre-trained.
            prompt_layer: Number of the layer, from 1, that is the first to read the prompt.
            attention_map: Map that the object is cut from: a key of `ROLL_OUTS`, or
                "border_contrast", which also has a least contrast for an object to stand out.
            connectivity: 2 or 1; see `object_mask`.
            compute_dtype: Type that the layers compute in; None for the parameters' type. Features,
                attention map and mask have at least float32 precision.
            rematerialise: Whether to recompute a layer's activations in the backward pass, and its
                attention weights for the attention map, instead of keeping them. The result is the
                same and takes less memory.
            rngs: Random streams; `params` draws the prompt from a normal of std 0.02.
        Raises:
            UserError: If the tower has one layer, or another argument is out of range.
        """
        if len(vision.layers) < 2:
            raise UserError(
                f"the vision tower has {len(vision.layers)} layer(s), but the attention roll-out "
                "needs at least 2: choose a deeper backbone"
            )
        check_arguments(num_prompts, attention_map, connectivity)
        if not 1 <= prompt_layer <= len(vision.layers):
            raise UserError(
                f"prompt_layer is {prompt_layer}: give 1 to {len(vision.layers)}, the number of "
                "layers of this backbone"
            )
        self.vision = vision
        self.layers_below = prompt_layer - 1
        self.map_name = attention_map
        if attention_map == BORDER_CONTRAST:
            self.least_contrast = Frozen(least_contrast(vision))
        self.connectivity = connectivity
        self.compute_dtype = compute_dtype
        self.rematerialise = rematerialise
        last_layer = vision.layers[-1]
        self.fine_grained_layer = trainable_copy(last_layer)
        width = vision.config.width
        self.prompt = Trainable(
            PROMPT_STD * nnx.initializers.normal(1.0)(rngs.params(), (num_prompts, width))
        )

    def __call__(self, inputs: Float[Array, "b H W 3"] | TokensBelow) -> ImageFeatures:
        """Encodes normalised images; all shapes are static and all work stays on the device.

        Args:
            inputs: Normalised images, or what `below_prompt` returned for them.
        """
        num_prompts, (gh, gw) = self.prompt.shape[0], self.vision.grid
        if isinstance(inputs, TokensBelow):
            dtype = self.compute_dtype or self.vision.class_embedding.dtype
            nothing: list[Any] = [None] * self.layers_below
            tokens, below = inputs.tokens.astype(dtype), _Trace(nothing, nothing)
        else:
            tokens, below = self._below(inputs)
        prompt = jnp.broadcast_to(
            self.prompt[...].astype(tokens.dtype), (tokens.shape[0], *self.prompt.shape)
        )
        tokens = jnp.concatenate([tokens, prompt], axis=1)  # Eq. 2

        *shared_layers, last_layer = self.vision.layers
        tokens, above = self._through(shared_layers[self.layers_below :], tokens)
        trace = _Trace(*(lower + upper for lower, upper in zip(below, above, strict=True)))
        decided = inputs.significance if isinstance(inputs, TokensBelow) else None
        significance = self._significance(trace, decided)
        mask = object_mask(significance, (gh, gw), self.connectivity)
        if self.map_name == BORDER_CONTRAST:
            mask |= significance.max(axis=1, keepdims=True) < self.least_contrast[...]

        # Eq. 8. The class token is computed separately, so that a program that uses no patch, such
        # as a training step, computes no patch. A program that uses both shares keys and values.
        class_token = self._class_token(last_layer, tokens)
        original, _ = self._run(last_layer, tokens)
        patches = self._project(original[:, 1 : 1 + mask.shape[1]])

        batch = mask.shape[0]  # symbolic in an export
        kept = [jnp.ones((batch, count), bool) for count in (1, num_prompts)]
        key_mask = jnp.concatenate([kept[0], mask, kept[1]], axis=1)
        # Eq. 9. Only the class token is used, so it is the only query.
        fine_grained = self._class_token(self.fine_grained_layer, tokens, key_mask)

        return ImageFeatures(
            image=self._project(class_token[:, 0]),
            object=self._project(fine_grained[:, 0]),
            object_patches=masked_mean(patches, mask),
            patches=patches.mean(axis=1),
            attention_map=significance,
            object_mask=mask,
        )

    def below_prompt(self, pixels: Float[Array, "b H W 3"]) -> TokensBelow:
        """Runs the layers below the prompt, which depend on nothing that is trained.

        The tokens are rounded to float16.
        """
        tokens, trace = self._below(pixels)
        half = tokens.astype(jnp.float16)
        if self.map_name == BORDER_CONTRAST:
            reached = middle(self.vision) <= self.layers_below
            entering = [*trace.entering, tokens]
            found = middle_contrast(self.vision, entering[middle(self.vision)]) if reached else None
            return TokensBelow(half, found)
        residual, _ = ROLL_OUTS[self.map_name]
        lower, upper = self._rolled_out(trace.attentions)
        if not lower:
            return TokensBelow(half, None)
        if not upper:
            row = class_token_row(lower, residual)
            return TokensBelow(half, row[..., 1:].sum(axis=1))
        # Times t, so that few entries are too small for float16's precision.
        product = patch_columns(lower, residual) * tokens.shape[1]
        return TokensBelow(half, product.astype(jnp.float16))

    def _below(self, pixels: Float[Array, "b H W 3"]) -> tuple[Float[Array, "b t d"], _Trace]:
        tokens = self.vision.embed(pixels, self.compute_dtype)
        shared_layers = list(self.vision.layers)[: self.layers_below]
        return self._through(shared_layers, tokens)

    def _through(
        self, layers: Sequence[TransformerLayer], tokens: Float[Array, "b t d"]
    ) -> tuple[Float[Array, "b t d"], _Trace]:
        """Runs frozen layers."""
        trace = _Trace([], [])
        for layer in layers:
            trace.entering.append(tokens)
            tokens, weights = self._run(layer, tokens)
            trace.attentions.append(
                kept_attention(layer, trace.entering[-1], weights, self.rematerialise)
            )
        return tokens, trace

    def _significance(
        self, trace: _Trace, decided: Float[Array | np.ndarray, "b *h n"] | None
    ) -> Float[Array, "b n"]:
        """Returns the chosen map (Eqs. 5-7 or the border contrast).

        Args:
            trace: Of all layers but the last.
            decided: The part of the map that was decided below the prompt, see `TokensBelow`.
        """
        if decided is not None and decided.ndim == 2:
            return jnp.asarray(decided, jnp.float32)
        if self.map_name == BORDER_CONTRAST:
            return middle_contrast(self.vision, trace.entering[middle(self.vision)])
        residual, _ = ROLL_OUTS[self.map_name]
        gh, gw = self.vision.grid
        lower, upper = self._rolled_out(trace.attentions)
        row = None
        if upper:
            row = class_token_row(upper, residual)[..., : 1 + gh * gw]  # without the prompt
        if decided is not None and row is not None:
            columns = row[..., None] * jnp.asarray(decided, jnp.float32)
            return columns.sum(axis=(1, 2)) / row.shape[-1]
        if lower:
            row = class_token_row(lower, residual, row)
        assert row is not None
        return row[..., 1:].sum(axis=1)

    def _rolled_out(self, attentions: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Returns the attentions that are rolled out of layers below the prompt and above it.

        The lists have the right lengths even where the attentions of higher layers are missing.
        """
        num_shared = len(self.vision.layers) - 1
        num_layers = ROLL_OUTS[self.map_name].num_layers
        first = 0 if num_layers is None else max(num_shared - num_layers, 0)
        whole = [*attentions, *[None] * (num_shared - len(attentions))]
        join = max(first, min(self.layers_below, num_shared))
        return whole[first:join], whole[join:]

    def _class_token(
        self,
        layer: TransformerLayer,
        tokens: Float[Array, "b t d"],
        key_mask: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b 1 d"]:
        if self.layers_below:
            return self._run(layer.class_token, tokens, key_mask)
        return self._run(partial(layer, num_queries=1), tokens, key_mask)[0]

    def _run(self, layer: Callable, *inputs: Array | None) -> Any:
        return (jax.checkpoint(layer) if self.rematerialise else layer)(*inputs)

    def _project(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        features = self.vision.project(tokens)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def kept_attention(
    layer: TransformerLayer,
    entering: Float[Array, "b t d"],
    weights: Float[Array, "b h t t"],
    rematerialise: bool,
) -> KeptAttention:
    """Returns what is kept of a layer's attention for the roll-out.

    Args:
        layer: A layer without a mask.
        entering: Tokens that enter the layer.
        weights: Attention weights that the layer returned.
        rematerialise: Whether to recompute the weights anyway.
    """
    if rematerialise or layer.attention.is_fused(entering):
        # The layer computes its queries and keys too; XLA merges the two computations.
        return layer.queries_and_keys(entering)
    return weights


def check_arguments(num_prompts: int, attention_map: str, connectivity: int) -> None:
    """Checks the arguments that the encoders of all towers have.

    Raises:
        UserError: If one is out of range.
    """
    if num_prompts < 0:
        raise UserError(f"num_prompts is {num_prompts}: give 0 or more")
    if attention_map not in ATTENTION_MAPS:
        raise UserError(f"attention_map is {attention_map!r}: choose one of {ATTENTION_MAPS}")
    if connectivity not in (1, 2):
        raise UserError(f"connectivity is {connectivity}: give 2 (8 neighbours) or 1 (4)")


def masked_mean(tokens: Float[Array, "b n e"], mask: Bool[Array, "b n"]) -> Float[Array, "b e"]:
    """Returns the mean of the tokens that the mask keeps; the mask must keep at least one."""
    weights = mask.astype(tokens.dtype)
    return jnp.einsum("bne,bn->be", tokens, weights) / weights.sum(axis=1, keepdims=True)
