"""CLIP-LoRA: low-rank updates of queries, keys and values in both towers."""

import math
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, ImageEncoder, TextTower
from fgvpl_jax.clip.layers import Linear
from fgvpl_jax.methods.both_towers import (
    AdaptedLinear,
    BothTowers,
    check_has_attention,
    first_template,
    layers_of,
    ordinary_linear,
)
from fgvpl_jax.methods.interface import Task
from fgvpl_jax.variables import Trainable

RANK = 2
ALPHA = 1.0

ModuleT = TypeVar("ModuleT", ImageEncoder, TextTower)

# Uniform within ±1/sqrt(inputs).
_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class LoRALinear(AdaptedLinear):
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

    def merged(self) -> Linear:
        """Returns the layer with the updated kernel; see `AdaptedLinear`."""
        kernel, down, up = (
            np.asarray(matrix[...], np.float64) for matrix in (self.base.kernel, self.down, self.up)
        )
        return ordinary_linear(kernel + ALPHA / math.sqrt(RANK) * (down @ up), self.base.bias)


class ClipLoRA(BothTowers):
    """Scaled cosines of both adapted towers' features, without the dropout (0.25) of its paper."""

    name = "clip_lora"
    title = "CLIP-LoRA"
    iterations_per_shot = 500
    learning_rate = 2e-4

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        template: str,
        text_features: Float[Array, "k e"],
        *,
        rngs: nnx.Rngs,
    ):
        check_has_attention(clip, self.name)
        adapted_encoder = with_updates(clip.image_encoder, rngs)
        adapted_text = with_updates(clip.text, rngs)
        super().__init__(clip, class_names, template, text_features, adapted_encoder, adapted_text)

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ClipLoRA":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.class_names, first_template(config), task.text_features, rngs=rngs)


def with_updates(module: ModuleT, rngs: nnx.Rngs) -> ModuleT:
    """Returns a copy of a frozen module whose query, key and value layers have updates."""
    copy = nnx.clone(module)
    for layer in layers_of(copy):
        attention = layer.attention
        for part in ("query", "key", "value"):
            setattr(attention, part, LoRALinear(getattr(attention, part), rngs=rngs))
    return copy
