"""Two-pathway adaptive recognition: from features to logits (section 3.2)."""

from functools import partial, reduce

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fgvpl_jax.defaults import (
    CACHE_LOGIT_WEIGHT,
    CACHE_VOTES,
    OBJECT_LOGIT_WEIGHT,
    OBJECT_QUERY,
    TEXT_RESIDUAL_RATIO,
)
from fgvpl_jax.errors import UserError
from fgvpl_jax.recognition.feature_adapter import FeatureAdapter, normalize
from fgvpl_jax.recognition.visual_cache import OBJECT_QUERIES, VisualCache, class_votes
from fgvpl_jax.variables import Frozen, to_device
from fgvpl_jax.visual_prompt import ImageFeatures


class TwoPathways(nnx.Module):
    """The adapters p and q, and the logits of one kind of feature from both pathways.

    Attributes:
        text_adapter: Adapter p of Eq. 10.
        visual_adapter: Adapter q of Eqs. 13-16, shared by support images and queries, images and
            objects.
        text_residual_ratio: α; an array in the frozen state, so that changing it causes no
            retracing.
        cache_votes: How path 2 combines the votes of a class, "sum" or "mean".
    """

    def __init__(
        self,
        dim: int,
        text_residual_ratio: float = TEXT_RESIDUAL_RATIO,
        *,
        cache_votes: str = CACHE_VOTES,
        rngs: nnx.Rngs,
    ):
        self.cache_votes = cache_votes
        self.text_adapter = FeatureAdapter(dim, rngs=rngs)
        self.visual_adapter = FeatureAdapter(dim, rngs=rngs)
        self.text_residual_ratio = Frozen(to_device(text_residual_ratio))

    def class_weights(self, text_features: Float[Array, "k e"]) -> Float[Array, "k e"]:
        """Returns w_new, unit vectors (Eq. 10)."""
        ratio = self.text_residual_ratio[...].astype(text_features.dtype)
        return self.text_adapter(text_features, ratio)

    def affinity(
        self, queries: Float[Array, "b e"], keys: Float[Array, "s e"]
    ) -> Float[Array, "b s"]:
        """Returns the cosine of each adapted query with each adapted key (Eq. 17)."""
        return self.visual_adapter(queries) @ self.visual_adapter(keys).T

    def paths(
        self,
        queries: Float[Array, "b e"],
        class_weights: Float[Array, "k e"],
        path2_queries: Float[Array, "b e"],
        keys: Float[Array, "s e"],
        cache: VisualCache,
        *,
        logit_scale: Float[Array, ""] | float,
        cache_logit_weight: Float[Array, ""] | float,
        own_places: Int[Array, "b"] | None = None,
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"]]:
        """Returns path1 and λ·path2 of one kind of raw feature.

        Args:
            queries: Features that path 1 compares with the class weights (Eqs. 11-12).
            class_weights: Unit vectors from `class_weights`.
            path2_queries: Features that path 2 compares with the keys (Eqs. 17-18).
            keys: Features of that kind in the cache.
            cache: Labels and validity of the support images.
            logit_scale: Scale of path 1's cosines.
            cache_logit_weight: λ.
            own_places: Place of each query in the cache; see `class_votes`.
        """
        path1 = logit_scale * normalize(queries) @ class_weights.T
        path2 = class_votes(
            path2_queries,
            keys,
            cache,
            class_weights.shape[0],
            adapter=self.visual_adapter,
            combine=self.cache_votes,
            own_places=own_places,
        )
        return path1, cache_logit_weight * path2


class TwoPathwayHead(TwoPathways):
    """Computes logits from the texts (path 1) and the support images (path 2) for image and object.

    Attributes:
        object_logit_weight: β; an array in the frozen state, like α.
        object_query: Object feature that path 2 uses as the query: "class_token" (f_O, the
            fine-grained branch) or "object_patches".
    """

    def __init__(
        self,
        dim: int,
        text_residual_ratio: float = TEXT_RESIDUAL_RATIO,
        object_logit_weight: float = OBJECT_LOGIT_WEIGHT,
        *,
        object_query: str = OBJECT_QUERY,
        cache_votes: str = CACHE_VOTES,
        rngs: nnx.Rngs,
    ):
        if object_query not in OBJECT_QUERIES:
            raise UserError(f"object_query is {object_query!r}: choose one of {OBJECT_QUERIES}")
        super().__init__(dim, text_residual_ratio, cache_votes=cache_votes, rngs=rngs)
        self.object_logit_weight = Frozen(to_device(object_logit_weight))
        self.object_query = object_query

    def contributions(
        self,
        features: ImageFeatures,
        text_features: Float[Array, "k e"],
        cache: VisualCache,
        *,
        logit_scale: Float[Array, ""] | float,
        cache_logit_weight: Float[Array, ""] | float = CACHE_LOGIT_WEIGHT,
        own_places: Int[Array, "b"] | None = None,
    ) -> dict[str, Float[Array, "b k"]]:
        """Returns the four terms of Eq. 19: path1_I, λ·path2_I, β·path1_O, β·λ·path2_O.

        Args:
            features: Raw features of the queries.
            text_features: w, one unit vector per class.
            cache: Raw features of the support images.
            logit_scale: Scale of path 1's cosines, the backbone's exp(logit_scale).
            cache_logit_weight: λ.
            own_places: Place of each query in the cache; see `class_votes`.
        """
        assert cache.object is not None
        dtype = features.image.dtype
        paths = partial(
            self.paths,
            cache=cache,
            logit_scale=jnp.asarray(logit_scale, dtype),
            cache_logit_weight=jnp.asarray(cache_logit_weight, dtype),
            own_places=own_places,
        )
        weights = self.class_weights(text_features)
        path2_object = (
            features.object if self.object_query == "class_token" else features.object_patches
        )
        image_text, image_cache = paths(features.image, weights, features.image, cache.image)
        object_text, object_cache = paths(features.object, weights, path2_object, cache.object)
        beta = self.object_logit_weight[...].astype(dtype)
        return {
            "image_text": image_text,
            "image_cache": image_cache,
            "object_text": beta * object_text,
            "object_cache": beta * object_cache,
        }

    def __call__(
        self,
        features: ImageFeatures,
        text_features: Float[Array, "k e"],
        cache: VisualCache,
        *,
        logit_scale: Float[Array, ""] | float,
        cache_logit_weight: Float[Array, ""] | float = CACHE_LOGIT_WEIGHT,
        own_places: Int[Array, "b"] | None = None,
    ) -> Float[Array, "b k"]:
        """Returns the logits of Eq. 19: path1_I + λ·path2_I + β·(path1_O + λ·path2_O).

        The arguments are those of `contributions`.
        """
        terms = self.contributions(
            features,
            text_features,
            cache,
            logit_scale=logit_scale,
            cache_logit_weight=cache_logit_weight,
            own_places=own_places,
        )
        return total(terms)


def total(terms: dict[str, Float[Array, "b k"]]) -> Float[Array, "b k"]:
    """Returns the sum of the terms, always added in the same order."""
    return reduce(jnp.add, (terms[name] for name in sorted(terms)))
