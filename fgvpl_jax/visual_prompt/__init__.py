"""Section 3.1: finding the object, and image features that attend to it."""

from fgvpl_jax.visual_prompt.attention_map import attention_map
from fgvpl_jax.visual_prompt.encoder import (
    ATTENTION_MAPS,
    FGImageEncoder,
    ImageFeatures,
    TokensBelow,
)
from fgvpl_jax.visual_prompt.feature_kinds import FeatureKinds, FeatureKindsEncoder
from fgvpl_jax.visual_prompt.object_mask import largest_component, object_mask, otsu_threshold
from fgvpl_jax.visual_prompt.pooled_encoder import PooledFGImageEncoder, fine_grained_encoder

__all__ = [
    "ATTENTION_MAPS",
    "FGImageEncoder",
    "FeatureKinds",
    "FeatureKindsEncoder",
    "ImageFeatures",
    "PooledFGImageEncoder",
    "TokensBelow",
    "attention_map",
    "fine_grained_encoder",
    "largest_component",
    "object_mask",
    "otsu_threshold",
]
