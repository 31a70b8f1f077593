"""The fine-grained image encoder of towers that end in a pooling: SigLIP, CLIP's ResNet, PE-Core.

The paper has none of them; this is the project's own extension of its section 3.1. The query of the
tower's pooling (SigLIP's probe, the mean of a ResNet's cells) stands for the class token, and the
pooling for the last layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip import ImageTower, PooledTower, class_token_tower
from fgvpl_jax.defaults import ATTENTION_MAP, CONNECTIVITY, NUM_PROMPTS, PROMPT_LAYER
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable, trainable_copy
from fgvpl_jax.visual_prompt.attention_map import ROLL_OUTS, one_layer_down
from fgvpl_jax.visual_prompt.border_contrast import LEAST_SHARE, border_contrast, test_card
from fgvpl_jax.visual_prompt.encoder import (
    BORDER_CONTRAST,
    PROMPT_STD,
    FGImageEncoder,
    ImageFeatures,
    check_arguments,
    kept_attention,
    masked_mean,
)
from fgvpl_jax.visual_prompt.object_mask import object_mask


def fine_grained_encoder(
    vision: ImageTower, *arguments: Any, **settings: Any
) -> "FGImageEncoder | PooledFGImageEncoder":
    """Builds the encoder that suits the tower; the arguments are those of both encoders."""
    if isinstance(vision, PooledTower):
        return PooledFGImageEncoder(vision, *arguments, **settings)
    return FGImageEncoder(class_token_tower(vision, "this method"), *arguments, **settings)


class PooledFGImageEncoder(nnx.Module):
    """Computes image features and object features in one pass, as `FGImageEncoder` does.

    Attributes:
        vision: The frozen tower, shared with the caller.
        prompt: Trainable prompt [m, d], appended without positions to the tokens that enter the
            first attention layer, or the pooling of a tower without attention layers.
        fine_grained_layer: Trainable copy of the tower's pooling that shares no storage with it.
        layers_below: 0, the number of layers below the prompt.
    """

    layers_below = 0

    def __init__(
        self,
        vision: PooledTower,
        num_prompts: int = NUM_PROMPTS,
        *,
        prompt_layer: int = PROMPT_LAYER,
        attention_map: str = ATTENTION_MAP,
        connectivity: int = CONNECTIVITY,
        compute_dtype: str | None = None,
        rematerialise: bool = False,
        rngs: nnx.Rngs,
    ):
        """Adds the trainable parts to a tower; `FGImageEncoder` documents the arguments.

        Raises:
            UserError: If an argument is out of range.
        """
        if prompt_layer != 1:
            raise UserError(
                f"prompt_layer is {prompt_layer}: on a {vision.kind} the prompt joins at layer 1 "
                "only"
            )
        check_arguments(num_prompts, attention_map, connectivity)
        self.vision = vision
        self.map_name = attention_map
        self.connectivity = connectivity
        self.compute_dtype = compute_dtype
        self.rematerialise = rematerialise
        self.fine_grained_layer = trainable_copy(vision.pooling)
        size = (num_prompts, vision.token_width)
        self.prompt = Trainable(PROMPT_STD * nnx.initializers.normal(1.0)(rngs.params(), size))
        if attention_map == BORDER_CONTRAST:
            entering, _ = self._layers(vision.embed(test_card(vision.config.image_size)))
            self.least_contrast = Frozen(LEAST_SHARE * self._contrast(entering).max())

    def __call__(self, pixels: Float[Array, "b H W 3"]) -> ImageFeatures:
        """Encodes normalised images; all shapes are static and all work stays on the device."""
        vision, (gh, gw) = self.vision, self.vision.grid
        tokens = vision.embed(pixels, self.compute_dtype)
        prompt = self.prompt[...].astype(tokens.dtype)
        prompt = jnp.broadcast_to(prompt, (tokens.shape[0], *prompt.shape))
        entering, attentions = self._layers(jnp.concatenate([tokens, prompt], axis=1))
        pooled = vision.before_pooling(entering[-1])
        image, row = self._run(vision.pooling, pooled)
        significance, mask = self._find_object(entering, [*attentions, row])

        kept = [
            jnp.ones((mask.shape[0], count), bool)
            for count in (vision.num_readers, self.prompt.shape[0])
        ]
        key_mask = jnp.concatenate([kept[0], mask, kept[1]], axis=1)
        fine_grained, _ = self._run(self.fine_grained_layer, pooled, key_mask)
        cells = _wide(vision.pooling.each(pooled[:, vision.num_readers :][:, : gh * gw]))
        return ImageFeatures(
            image=_wide(image),
            object=_wide(fine_grained),
            object_patches=masked_mean(cells, mask),
            patches=cells.mean(axis=1),
            attention_map=significance,
            object_mask=mask,
        )

    def _layers(self, tokens: Float[Array, "b t d"]) -> tuple[list[Array], list[Any]]:
        """Runs the attention layers.

        Returns:
            Tokens that enter each layer, and those that leave the last; attention weights of each,
            or, to save memory, the queries and keys that they are recomputed from.
        """
        entering, attentions = [tokens], []
        for layer in self.vision.attention_layers:
            tokens, weights = self._run(layer, entering[-1])
            attentions.append(kept_attention(layer, entering[-1], weights, self.rematerialise))
            entering.append(tokens)
        return entering, attentions

    def _find_object(
        self, entering: Sequence[Float[Array, "b t d"]], attentions: Sequence[Any]
    ) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
        """Returns the chosen map and its mask; the last of `attentions` is the query's row."""
        grid = self.vision.grid
        if self.map_name == BORDER_CONTRAST:
            contrast = self._contrast(entering)
            flat = contrast.max(axis=1, keepdims=True) < self.least_contrast[...]
            return contrast, object_mask(contrast, grid, self.connectivity) | flat
        significance = self._roll_out(attentions)
        return significance, object_mask(significance, grid, self.connectivity)

    def _roll_out(self, attentions: Sequence[Any]) -> Float[Array, "b n"]:
        """Returns the query's attention, rolled out through the layers below the pooling.

        The query is no token of these layers, so that a residual share begins below its own row. If
        the pooling has another number of heads than the layers, every head of these begins with
        the mean of its rows.
        """
        residual, num_layers = ROLL_OUTS[self.map_name]
        *below, row = jax.lax.stop_gradient(list(attentions))
        row = row.astype(jnp.float32)
        count = len(below) if num_layers is None else min(num_layers - 1, len(below))
        for kept in reversed(below[len(below) - count :]):
            heads = jax.tree.leaves(kept)[0].shape[1]
            if heads != row.shape[1]:
                row = jnp.repeat(row.mean(axis=1, keepdims=True), heads, axis=1)
            row = one_layer_down(row, kept, residual)
        first, (gh, gw) = self.vision.num_readers, self.vision.grid
        return row[..., first : first + gh * gw].sum(axis=1)

    def _contrast(self, entering: Sequence[Float[Array, "b t d"]]) -> Float[Array, "b n"]:
        """Returns the border contrast of the tokens that enter the middle layer."""
        layers, (gh, gw) = self.vision.attention_layers, self.vision.grid
        middle = len(layers) // 2
        tokens = layers[middle].norm1(entering[middle]) if layers else entering[-1]
        return border_contrast(tokens[:, self.vision.num_readers :][:, : gh * gw], (gh, gw))

    def _run(self, block: Callable, *inputs: Array) -> tuple[Array, Array]:
        return (jax.checkpoint(block) if self.rematerialise else block)(*inputs)


def _wide(features: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
