"""FVP, the fine-grained visual prompt alone: FG-VPL without adapters and without the cache."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.fg_vpl import fg_vpl_recipe
from fgvpl_jax.methods.interface import Recipe, Task
from fgvpl_jax.methods.prompted import PromptedMethod
from fgvpl_jax.variables import Frozen
from fgvpl_jax.visual_prompt import ImageFeatures, fine_grained_encoder


class FVP(PromptedMethod):
    """Logits = scale · f·wᵀ + β · scale · f_O·wᵀ (path 1 of Eq. 19 with the plain text weights).

    Attributes:
        object_logit_weight: β.
    """

    name = "fvp"
    title = "FVP alone"

    def __init__(
        self,
        clip: CLIP,
        text_features: Float[Array, "k e"],
        *,
        num_prompts: int,
        prompt_layer: int,
        attention_map: str,
        connectivity: int,
        object_logit_weight: float,
        compute_dtype: str | None,
        rematerialise: bool,
        rngs: nnx.Rngs,
    ):
        super().__init__(clip, text_features)
        self.encoder = fine_grained_encoder(
            clip.vision,
            num_prompts,
            prompt_layer=prompt_layer,
            attention_map=attention_map,
            connectivity=connectivity,
            compute_dtype=compute_dtype,
            rematerialise=rematerialise,
            rngs=rngs,
        )
        self.object_logit_weight = Frozen(jnp.asarray(object_logit_weight, jnp.float32))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "FVP":
        """Builds the model; see `Method.build`."""
        return cls(
            clip,
            task.text_features,
            num_prompts=config.num_prompts,
            prompt_layer=config.prompt_layer,
            attention_map=config.attention_map,
            connectivity=config.connectivity,
            object_logit_weight=config.object_logit_weight,
            compute_dtype=config.compute_dtype,
            rematerialise=config.rematerialise,
            rngs=rngs,
        )

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns FG-VPL's recipe."""
        return fg_vpl_recipe(benchmark)

    def contributions(
        self, features: ImageFeatures, support: None
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns one term per branch."""
        beta = self.object_logit_weight[...].astype(features.image.dtype)
        return {
            "image_text": self.text_logits(features.image),
            "object_text": beta * self.text_logits(features.object),
        }
