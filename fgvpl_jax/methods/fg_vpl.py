"""FG-VPL as a whole: uint8 images in, logits out, one traceable function."""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from fgvpl_jax.clip import CLIP
from fgvpl_jax.recognition import TwoPathwayHead, VisualCache, normalize
from fgvpl_jax.variables import Frozen
from fgvpl_jax.visual_prompt import FGImageEncoder, ImageFeatures


class SupportFeatures(NamedTuple):
    """What the cache keeps of support images: f(x_set) and the object-patch means, raw."""

    image: Float[Array, "b e"]
    object: Float[Array, "b e"]


class FGVPL(nnx.Module):
    """The fine-grained image encoder and the two-pathway head over one set of classes.

    Attributes:
        encoder: Section 3.1; its prompt and fine-grained layer are trained.
        head: Section 3.2; its adapters p and q are trained.
        text_features: w [k, e], frozen, unit vectors.
        logit_scale: The backbone's exp(logit_scale), frozen.
    """

    name = "fg_vpl"

    def __init__(
        self,
        clip: CLIP,
        text_features: Float[Array, "k e"],
        *,
        num_prompts: int = 1,
        connectivity: int = 2,
        text_residual_ratio: float = 0.05,
        object_logit_weight: float = 0.5,
        object_query: str = "class_token",
        compute_dtype: str | None = None,
        rematerialise: bool = False,
        rngs: nnx.Rngs,
    ):
        self.encoder = FGImageEncoder(
            clip.vision,
            num_prompts,
            connectivity=connectivity,
            compute_dtype=compute_dtype,
            rematerialise=rematerialise,
            rngs=rngs,
        )
        self.head = TwoPathwayHead(
            text_features.shape[1],
            text_residual_ratio,
            object_logit_weight,
            object_query=object_query,
            rngs=rngs,
        )
        self.text_features = Frozen(text_features)
        self.logit_scale = Frozen(jnp.asarray(clip.logit_scale))
        self.pixel_scale = Frozen(jnp.asarray(clip.rescale_factor / clip.image_std))
        self.pixel_shift = Frozen(jnp.asarray(-clip.image_mean / clip.image_std))

    def normalize_pixels(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b H W 3"]:
        """(images · rescale_factor - mean) / std with the checkpoint's numbers."""
        scale = self.pixel_scale[...]
        return images.astype(scale.dtype) * scale + self.pixel_shift[...]

    def features(self, images: UInt8[Array, "b H W 3"]) -> ImageFeatures:
        """Raw features, attention maps and object masks."""
        return self.encoder(self.normalize_pixels(images))

    def support_features(self, images: UInt8[Array, "b H W 3"]) -> SupportFeatures:
        """The features that a cache holds of its images."""
        features = self.features(images)
        return SupportFeatures(features.image, features.object_patches)

    def logits(
        self,
        features: ImageFeatures,
        cache: VisualCache,
        cache_logit_weight: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "b k"]:
        """Eq. 19 for features already at hand."""
        return self.head(
            features,
            self.text_features[...],
            cache,
            logit_scale=self.logit_scale[...],
            cache_logit_weight=cache_logit_weight,
        )

    def affinity(self, features: ImageFeatures, cache: VisualCache) -> Float[Array, "b s"]:
        """Cosine of each query's adapted image feature with each cached image's (Eq. 17)."""
        adapt = self.head.visual_adapter
        return adapt(features.image) @ adapt(cache.image).T

    def __call__(
        self,
        images: UInt8[Array, "b H W 3"],
        cache: VisualCache,
        cache_logit_weight: Float[Array, ""] | float = 1.0,
    ) -> Float[Array, "b k"]:
        """From pixels to logits (Eq. 19)."""
        return self.logits(self.features(images), cache, cache_logit_weight)

    def zero_shot_logits(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Plain CLIP's logits: no prompt, no adapters, no cache (Eq. 1)."""
        pixels = self.normalize_pixels(images)
        features = self.encoder.vision(pixels, self.encoder.compute_dtype)
        features = normalize(features.astype(self.text_features.dtype))
        return self.logit_scale[...] * features @ self.text_features[...].T
