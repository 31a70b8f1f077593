"""Base of the methods that use the fine-grained image encoder."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from fgvpl_jax.methods.interface import PixelMethod
from fgvpl_jax.visual_prompt import (
    FGImageEncoder,
    ImageFeatures,
    PooledFGImageEncoder,
    TokensBelow,
)


class PromptedMethod(PixelMethod):
    """A method whose features are those of the fine-grained image encoder.

    Attributes:
        encoder: Encoder of section 3.1; its prompt and fine-grained layer are trained.
    """

    finds_objects = True
    tunable_encoder: ClassVar[bool] = True
    passes_are_cheap: ClassVar[bool] = True
    encoder: FGImageEncoder | PooledFGImageEncoder

    def features(self, inputs: UInt8[Array, "b H W 3"] | TokensBelow) -> ImageFeatures:
        """Returns raw features, attention maps and object masks.

        Args:
            inputs: Pixels, or what `below_prompt` returned for them.
        """
        if isinstance(inputs, TokensBelow):
            assert isinstance(self.encoder, FGImageEncoder)
            return self.encoder(inputs)
        return self.encoder(self.image_encoder.normalize_pixels(inputs))

    def zero_shot_logits(self, inputs: UInt8[Array, "b H W 3"]) -> Float[Array, "b k"]:
        """Returns plain CLIP's logits (Eq. 1); its layers compute in the run's type."""
        pixels = self.image_encoder.normalize_pixels(inputs)
        features = self.encoder.vision(pixels, self.encoder.compute_dtype)
        return self.text_logits(features.astype(jnp.promote_types(features.dtype, jnp.float32)))

    def below_prompt(self, inputs: UInt8[Array, "b H W 3"]) -> TokensBelow:
        """Returns what the layers below the prompt compute, which no training changes."""
        assert isinstance(self.encoder, FGImageEncoder)
        return self.encoder.below_prompt(self.image_encoder.normalize_pixels(inputs))
