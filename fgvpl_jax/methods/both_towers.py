"""Base of the methods that train weights of both towers: their texts, logits and recipe."""

import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64, UInt8
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, ImageEncoder, TextTower
from fgvpl_jax.clip.layers import Linear, TransformerLayer
from fgvpl_jax.clip.towers import ImageTower
from fgvpl_jax.errors import SharedError
from fgvpl_jax.methods.interface import PixelMethod, Recipe
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Frozen

BATCH_SIZE = 32
# Rate that the cosine of 2SFS and CLIP-SVD ends at.
FINAL_RATE = 1e-6


class AdaptedLinear(nnx.Module):
    """A linear layer whose kernel is trained in another form."""

    def merged(self) -> Linear:
        """Returns the ordinary layer that equals this one up to rounding."""
        raise NotImplementedError


class BothTowers(PixelMethod):
    """Scaled cosines of the features of two adapted towers.

    Attributes:
        iterations_per_shot: Number of steps of the recipe for each image of a class.
        learning_rate: Learning rate of the recipe.
        adapted_encoder: The image encoder with trained variables.
        adapted_text: The text tower with trained variables.
        texts: Token embeddings [k, c, d] of the first template with each class name.
        ends: Position [k] of each text's end-of-text token.
    """

    iterations_per_shot: ClassVar[int]
    learning_rate: ClassVar[float]

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        template: str,
        text_features: Float[Array, "k e"],
        adapted_encoder: ImageEncoder,
        adapted_text: TextTower,
    ):
        super().__init__(clip, text_features)
        self.adapted_encoder = adapted_encoder
        self.adapted_text = adapted_text
        texts = [template.replace("{}", n.replace("_", " ")) for n in class_names]
        token_ids = jnp.asarray(clip.text.without_padding(clip.tokenize(texts)))
        # Embedded once, so that an export holds no table of all tokens.
        self.texts = Frozen(clip.text.token_embedding[...][token_ids])
        self.ends = Frozen(clip.text.ends(token_ids))

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the recipe: a number of iterations per shot, rounded up to whole epochs."""
        steps_per_epoch = math.ceil(num_images / BATCH_SIZE)
        return Recipe(
            epochs=math.ceil(cls.iterations_per_shot * shots / steps_per_epoch),
            batch_size=BATCH_SIZE,
            learning_rate=cls.learning_rate,
            weight_decay=0.01,
        )

    def features(self, inputs: UInt8[Array, "b H W 3"]) -> Float[Array, "b e"]:
        """Returns the adapted image tower's raw features."""
        return self.adapted_encoder(inputs)

    def adapted_text_features(self) -> Float[Array, "k e"]:
        """Returns the adapted text tower's features of the classes as unit vectors."""
        return normalize(self.adapted_text.encode(self.texts[...], self.ends[...]))

    def class_weights(self) -> Float[Array, "k e"]:
        """Returns the unit vectors that image features are compared with: the text features."""
        return self.adapted_text_features()

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns scaled cosines of the adapted image features with the class weights."""
        return self.cosine_logits(features, self.class_weights())

    def merged_towers(self) -> tuple[ImageTower, TextTower]:
        """Returns copies of both adapted towers in which every linear layer is an ordinary one."""
        encoder, text = nnx.clone(self.adapted_encoder), nnx.clone(self.adapted_text)
        for tower in (encoder, text):
            for layer in layers_of(tower):
                for holder in (layer, layer.attention):
                    for name, value in list(vars(holder).items()):
                        if isinstance(value, AdaptedLinear):
                            setattr(holder, name, value.merged())
        return encoder.vision, text


def check_has_attention(clip: CLIP, method: str) -> None:
    """Refuses a backbone whose image tower has no transformer layers, such as a ResNet.

    Raises:
        SharedError: If it has none.
    """
    if not clip.vision.attention_layers:
        raise SharedError(
            f"{method} trains the transformer layers of the image tower; {clip.identity.name} is a "
            f"{clip.vision.kind}: choose a ViT, or another method"
        )


def first_template(config: ConfigDict) -> str:
    """Returns the template whose texts the text tower reads in training."""
    return config.data.templates[0]


def layers_of(tower: ImageEncoder | TextTower) -> Sequence[TransformerLayer]:
    """Returns the transformer layers of a tower."""
    return tower.vision.attention_layers if isinstance(tower, ImageEncoder) else tower.layers


def ordinary_linear(kernel: Float64[np.ndarray, "i o"], bias: Frozen | None) -> Linear:
    """Returns a linear layer of float32 with these weights."""
    linear = Linear(*kernel.shape, use_bias=bias is not None, rngs=nnx.Rngs(0))
    linear.kernel.set_value(jnp.asarray(kernel, jnp.float32))
    if bias is not None:
        linear.bias = bias
    return linear
