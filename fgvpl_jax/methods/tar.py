"""TAR, the two-pathway adaptive recognition alone, on CLIP's plain image feature."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.fg_vpl import (
    SupportFeatures,
    cache_weight,
    cache_weight_grid,
    fg_vpl_recipe,
)
from fgvpl_jax.methods.interface import Choices, FeatureMethod, Recipe, Task
from fgvpl_jax.recognition import TwoPathways, VisualCache


class TAR(FeatureMethod):
    """Eq. 19 without prompt and object branch: path1_I + λ·path2_I.

    Attributes:
        pathways: Pathways of section 3.2; their adapters p and q are trained.
    """

    name = "tar"
    title = "TAR alone"
    uses_cache = True

    def __init__(
        self,
        clip: CLIP,
        text_features: Float[Array, "k e"],
        *,
        text_residual_ratio: float,
        cache_votes: str,
        leave_one_out: bool,
        rngs: nnx.Rngs,
    ):
        super().__init__(clip, text_features)
        self.pathways = TwoPathways(
            text_features.shape[1], text_residual_ratio, cache_votes=cache_votes, rngs=rngs
        )
        self.leave_one_out = leave_one_out

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "TAR":
        """Builds the model; see `Method.build`."""
        return cls(
            clip,
            task.text_features,
            text_residual_ratio=config.text_residual_ratio,
            cache_votes=config.cache_votes,
            leave_one_out=config.cache_leave_one_out,
            rngs=rngs,
        )

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns FG-VPL's recipe."""
        return fg_vpl_recipe(benchmark)

    @classmethod
    def starting_choices(cls, config: ConfigDict) -> Choices:
        """Returns the config's λ."""
        return cache_weight(config)

    @classmethod
    def candidates(cls, config: ConfigDict) -> Sequence[Choices]:
        """Returns the λ of the config's grid."""
        return cache_weight_grid(config)

    def kept_features(self, features: Float[Array, "b e"]) -> SupportFeatures:
        """Returns the inputs as image features; there are no objects."""
        return SupportFeatures(features, None)

    def contributions(
        self,
        features: Float[Array, "b e"],
        support: VisualCache,
        cache_logit_weight: Float[Array, ""] | float,
        own_places: Int[Array, "b"] | None = None,
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns one term per pathway."""
        text, cache = self.pathways.paths(
            features,
            self.pathways.class_weights(self.text_features[...]),
            features,
            support.image,
            support,
            logit_scale=self.logit_scale[...],
            cache_logit_weight=jnp.asarray(cache_logit_weight, features.dtype),
            own_places=own_places,
        )
        return {"image_text": text, "image_cache": cache}

    def affinity(self, features: Float[Array, "b e"], support: VisualCache) -> Float[Array, "b s"]:
        """Returns cosines of adapted image features, each query with each cached image (Eq. 17)."""
        return self.pathways.affinity(features, support.image)
