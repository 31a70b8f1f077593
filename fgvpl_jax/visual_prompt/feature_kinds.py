"""Three frozen features of a photo in one pass: of the image, the object and the patches."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from fgvpl_jax.clip import ImageEncoder
from fgvpl_jax.visual_prompt.pooled_encoder import fine_grained_encoder

NUM_KINDS = 3


class FeatureKinds(NamedTuple):
    """Raw features of photos by kind, and where the object is.

    Attributes:
        kinds: Image feature, object feature and mean of the projected patch tokens.
        attention_map: See `ImageFeatures`.
        object_mask: See `ImageFeatures`.
    """

    kinds: Float[Array, "b 3 e"]
    attention_map: Float[Array, "b n"]
    object_mask: Bool[Array, "b n"]

    @classmethod
    def unpacked(cls, packed: Float[Array, "b c"], dim: int) -> "FeatureKinds":
        """Returns the features that a `FeatureKindsEncoder` has packed.

        Args:
            packed: One row per photo.
            dim: Dimension e of a feature.
        """
        count = NUM_KINDS * dim
        num_patches = (packed.shape[1] - count) // 2
        return cls(
            packed[:, :count].reshape(packed.shape[0], NUM_KINDS, dim),
            packed[:, count : count + num_patches],
            packed[:, count + num_patches :] > 0,
        )


class FeatureKindsEncoder(nnx.Module):
    """The fine-grained encoder before any training, without a prompt.

    The object feature is the class token of CLIP's own last layer when it reads the object's
    patches alone. Each photo's row holds the fields of `FeatureKinds` one after the other.
    """

    def __init__(self, image_encoder: ImageEncoder, *, attention_map: str, connectivity: int):
        self.image_encoder = image_encoder
        self.encoder = fine_grained_encoder(
            image_encoder.vision,
            num_prompts=0,
            attention_map=attention_map,
            connectivity=connectivity,
            rngs=nnx.Rngs(0),
        )

    @property
    def feature_dim(self) -> int:
        """Returns 3e + 2n; see `FrozenEncoder`."""
        vision = self.image_encoder.vision
        return NUM_KINDS * vision.config.embed_dim + 2 * int(np.prod(vision.grid))

    @property
    def settings(self) -> list[Any]:
        """Returns the name of the features and the settings of the object mask."""
        return ["feature kinds", self.encoder.map_name, self.encoder.connectivity]

    def __call__(self, images: UInt8[Array, "b H W 3"]) -> Float[Array, "b c"]:
        """Returns packed features of photos."""
        found = self.encoder(self.image_encoder.normalize_pixels(images))
        columns = [found.image, found.object, found.patches, found.attention_map]
        return jnp.concatenate([*columns, found.object_mask.astype(found.image.dtype)], axis=1)
