"""CLIP-LoRA: low-rank updates of queries, keys and values in both towers."""

import math
from typing import TypeVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, ImageEncoder, TextTower
from fgvpl_jax.clip.layers import Linear
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods.interface import PixelMethod, Recipe, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Frozen, Trainable

RANK = 2
ALPHA = 1.0
BATCH_SIZE = 32
ITERATIONS_PER_SHOT = 500

ModuleT = TypeVar("ModuleT", ImageEncoder, TextTower)

# Uniform within ±1/sqrt(inputs).
_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoRALinear(nnx.Module):
    """A linear layer with an update: x·kernel + bias + (α / sqrt(rank)) · x·down·up, with α = 1.

    Attributes:
        base: The frozen layer.
        down: Matrix [in, rank].
        up: Matrix [rank, out], initially zero, so that training begins at CLIP.
    """

    def __init__(self, base: Linear, *, rngs: nnx.Rngs):
        dim_in, dim_out = base.kernel.shape
        self.base = base
        self.down = Trainable(_kernel(rngs.params(), (dim_in, RANK)))
        self.up = Trainable(jnp.zeros((RANK, dim_out)))

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Applies the layer and its update."""
        update = x @ self.down[...] @ self.up[...]
        return self.base(x) + ALPHA / math.sqrt(RANK) * update


class ClipLoRA(PixelMethod):
    """Scaled cosines of both adapted towers' features, without the dropout (0.25) of its paper.

    Attributes:
        adapted_encoder: The image encoder with updates.
        adapted_text: The text tower with updates.
        token_ids: Token ids [k, c] of the first template with each class name.
    """

    name = "clip_lora"
    title = "CLIP-LoRA"

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        template: str,
        text_features: Float[Array, "k e"],
        *,
        rngs: nnx.Rngs,
    ):
        super().__init__(clip, text_features)
        if not clip.vision.attention_layers:
            raise UserError(
                f"{self.name} adapts the attention layers of the image tower; "
                f"{clip.identity.name} is a {clip.vision.kind}: choose a ViT, or another method"
            )
        self.adapted_encoder = with_updates(clip.image_encoder, rngs)
        self.adapted_text = with_updates(clip.text, rngs)
        token_ids = clip.tokenize(
            [template.replace("{}", n.replace("_", " ")) for n in class_names]
        )
        self.token_ids = Frozen(jnp.asarray(clip.text.without_padding(token_ids)))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ClipLoRA":
        """Builds the model; see `Method.build`."""
        template = config.data.templates[0]
        return cls(clip, task.class_names, template, task.text_features, rngs=rngs)

    @classmethod
    def recipe(cls, benchmark: str, shots: int, num_images: int) -> Recipe:
        """Returns the recipe: 500 iterations per shot, rounded up to whole epochs."""
        steps_per_epoch = math.ceil(num_images / BATCH_SIZE)
        return Recipe(
            epochs=math.ceil(ITERATIONS_PER_SHOT * shots / steps_per_epoch),
            batch_size=BATCH_SIZE,
            learning_rate=2e-4,
            weight_decay=0.01,
        )

    def features(self, inputs: UInt8[Array, "b H W 3"]) -> Float[Array, "b e"]:
        """Returns the adapted image tower's raw features."""
        return self.adapted_encoder(inputs)

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns scaled cosines of both adapted towers' features."""
        class_weights = normalize(self.adapted_text(self.token_ids[...]))
        return self.cosine_logits(features, class_weights)


def with_updates(module: ModuleT, rngs: nnx.Rngs) -> ModuleT:
    """Returns a copy of a frozen module whose query, key and value layers have updates."""
    copy = nnx.clone(module)
    layers = copy.vision.attention_layers if isinstance(copy, ImageEncoder) else copy.layers
    for layer in layers:
        attention = layer.attention
        for part in ("query", "key", "value"):
            setattr(attention, part, LoRALinear(getattr(attention, part), rngs=rngs))
    return copy
