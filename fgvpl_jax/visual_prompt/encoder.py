"""The fine-grained image encoder: CLIP's vision tower, a prompt and a copy of the last layer."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fgvpl_jax.clip import VisionTower
from fgvpl_jax.defaults import ATTENTION_MAP, CONNECTIVITY, NUM_PROMPTS
from fgvpl_jax.errors import UserError
from fgvpl_jax.variables import Frozen, Trainable, trainable_copy
from fgvpl_jax.visual_prompt.attention_map import (
    ROLL_OUTS,
    attention_map,
    recomputed_attention_map,
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


class FGImageEncoder(nnx.Module):
    """Computes image features and object features in one pass (section 3.1, Eqs. 2-9).

    Attributes:
        vision: The frozen tower, shared with the caller.
        prompt: Trainable prompt [m, d], appended after CLIP's pre-LayerNorm without a position
            embedding.
        fine_grained_layer: Trainable copy of the tower's last layer that shares no storage with
            it.
    """

    def __init__(
        self,
        vision: VisionTower,
        num_prompts: int = NUM_PROMPTS,
        *,
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
        if num_prompts < 0:
            raise UserError(f"num_prompts is {num_prompts}: give 0 or more")
        if attention_map not in ATTENTION_MAPS:
            raise UserError(f"attention_map is {attention_map!r}: choose one of {ATTENTION_MAPS}")
        if connectivity not in (1, 2):
            raise UserError(f"connectivity is {connectivity}: give 2 (8 neighbours) or 1 (4)")
        self.vision = vision
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

    def __call__(self, pixels: Float[Array, "b H W 3"]) -> ImageFeatures:
        """Encodes normalised images; all shapes are static and all work stays on the device."""
        num_prompts = self.prompt.shape[0]
        tokens = self.vision.embed(pixels, self.compute_dtype)
        prompt = jnp.broadcast_to(
            self.prompt[...].astype(tokens.dtype), (tokens.shape[0], *self.prompt.shape)
        )
        tokens = jnp.concatenate([tokens, prompt], axis=1)  # Eq. 2

        *shared_layers, last_layer = self.vision.layers
        entering = [tokens]  # of each layer
        attentions: list[Any] = []
        for layer in shared_layers:
            tokens, weights = self._run(layer, entering[-1])
            # The layer computes its queries and keys too; XLA merges the two computations.
            attentions.append(
                layer.queries_and_keys(entering[-1]) if self.rematerialise else weights
            )
            entering.append(tokens)
        significance, mask = self._find_object(entering, attentions)

        # Eq. 8. The class token is computed separately, so that a program that uses no patch, such
        # as a training step, computes no patch. A program that uses both shares keys and values.
        class_token, _ = self._run(partial(last_layer, num_queries=1), tokens)
        original, _ = self._run(last_layer, tokens)
        patches = self._project(original[:, 1 : 1 + mask.shape[1]])

        batch = mask.shape[0]  # symbolic in an export
        kept = [jnp.ones((batch, count), bool) for count in (1, num_prompts)]
        key_mask = jnp.concatenate([kept[0], mask, kept[1]], axis=1)
        # Eq. 9. Only the class token is used, so it is the only query.
        fine_grained, _ = self._run(
            partial(self.fine_grained_layer, num_queries=1), tokens, key_mask
        )

        return ImageFeatures(
            image=self._project(class_token[:, 0]),
            object=self._project(fine_grained[:, 0]),
            object_patches=masked_mean(patches, mask),
            patches=patches.mean(axis=1),
            attention_map=significance,
            object_mask=mask,
        )

    def _find_object(
        self, entering: Sequence[Float[Array, "b t d"]], attentions: Sequence[Any]
    ) -> tuple[Float[Array, "b n"], Bool[Array, "b n"]]:
        """Returns the chosen map (Eqs. 5-7 or the border contrast) and its mask."""
        grid, connectivity = self.vision.grid, self.connectivity
        if self.map_name == BORDER_CONTRAST:
            contrast = middle_contrast(self.vision, entering[middle(self.vision)])
            flat = contrast.max(axis=1, keepdims=True) < self.least_contrast[...]
            return contrast, object_mask(contrast, grid, connectivity) | flat
        residual, num_layers = ROLL_OUTS[self.map_name]
        roll_out = recomputed_attention_map if self.rematerialise else attention_map
        top = attentions[-num_layers:] if num_layers else attentions
        significance = roll_out(top, self.prompt.shape[0], residual=residual)
        return significance, object_mask(significance, grid, connectivity)

    def _run(self, layer: Callable, *inputs: Array) -> tuple[Array, Array]:
        return (jax.checkpoint(layer) if self.rematerialise else layer)(*inputs)

    def _project(self, tokens: Float[Array, "*b d"]) -> Float[Array, "*b e"]:
        features = self.vision.project(tokens)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))


def masked_mean(tokens: Float[Array, "b n e"], mask: Bool[Array, "b n"]) -> Float[Array, "b e"]:
    """Returns the mean of the tokens that the mask keeps; the mask must keep at least one."""
    weights = mask.astype(tokens.dtype)
    return jnp.einsum("bne,bn->be", tokens, weights) / weights.sum(axis=1, keepdims=True)
