"""Two-pathway adaptive recognition: features to logits (section 3.2)."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition.feature_adapter import FeatureAdapter, normalize
from fgvpl_jax.recognition.visual_cache import OBJECT_QUERIES, VisualCache, class_votes
from fgvpl_jax.variables import Frozen
from fgvpl_jax.visual_prompt import ImageFeatures


class TwoPathwayHead(nnx.Module):
    """Logits from text (path 1) and from the support images (path 2), image and object.

    Attributes:
        text_adapter: p of Eq. 10.
        visual_adapter: q of Eqs. 13-16, one for set and query, image and object.
        text_residual_ratio: α; an array of the frozen state, so changing it retraces nothing.
        object_logit_weight: β; likewise.
        object_query: Where path 2 takes the query's object feature: "class_token" (f_O, the
            fine-grained branch) or "object_patches".
    """

    def __init__(
        self,
        dim: int,
        text_residual_ratio: float = 0.05,
        object_logit_weight: float = 0.5,
        *,
        object_query: str = "class_token",
        rngs: nnx.Rngs,
    ):
        if object_query not in OBJECT_QUERIES:
            raise UserError(f"object_query is {object_query!r}: choose one of {OBJECT_QUERIES}")
        self.text_adapter = FeatureAdapter(dim, rngs=rngs)
        self.visual_adapter = FeatureAdapter(dim, rngs=rngs)
        self.text_residual_ratio = Frozen(jnp.asarray(text_residual_ratio, jnp.float32))
        self.object_logit_weight = Frozen(jnp.asarray(object_logit_weight, jnp.float32))
        self.object_query = object_query

    def __call__(
        self,
        features: ImageFeatures,
        text_features: Float[Array, "k e"],
        cache: VisualCache,
        *,
        logit_scale: Float[Array, ""] | float,
        cache_logit_weight: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "b k"]:
        """Eq. 19: path1_I + λ·path2_I + β·(path1_O + λ·path2_O).

        Args:
            features: Raw features of the queries.
            text_features: w, one unit vector a class.
            cache: Raw features of the support set.
            logit_scale: Scale of path 1's cosines, the backbone's exp(logit_scale).
            cache_logit_weight: λ.
        """
        dtype = features.image.dtype
        num_classes = text_features.shape[0]
        logit_scale = jnp.asarray(logit_scale, dtype)
        cache_logit_weight = jnp.asarray(cache_logit_weight, dtype)
        weights = self.text_adapter(text_features, self.text_residual_ratio[...].astype(dtype))

        def both_paths(query, path2_query, keys):
            path1 = logit_scale * normalize(query) @ weights.T  # Eqs. 11-12
            affinity = self.visual_adapter(path2_query) @ self.visual_adapter(keys).T
            path2 = class_votes(affinity, cache, num_classes)  # Eqs. 17-18
            return path1 + cache_logit_weight * path2

        path2_object = (
            features.object if self.object_query == "class_token" else features.object_patches
        )
        image_logits = both_paths(features.image, features.image, cache.image)
        object_logits = both_paths(features.object, path2_object, cache.object)
        return image_logits + self.object_logit_weight[...].astype(dtype) * object_logits
