"""CLIP-SVD: only the singular values of both towers' matrices are trained."""

from typing import TypeVar
from weakref import WeakKeyDictionary

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP, ImageEncoder, TextTower
from fgvpl_jax.clip.layers import Linear, TransformerLayer
from fgvpl_jax.methods.both_towers import (
    FINAL_RATE,
    AdaptedLinear,
    BothTowers,
    check_has_attention,
    first_template,
    layers_of,
    ordinary_linear,
)
from fgvpl_jax.methods.interface import Task
from fgvpl_jax.methods.optimizers import cosine
from fgvpl_jax.variables import Frozen, Trainable

ModuleT = TypeVar("ModuleT", ImageEncoder, TextTower)

# U [in, r], singular values [r] in descending order, and Vᵀ [r, out] of a kernel.
Factors = tuple[Array, Array, Array]

# Factors of a backbone's matrices, in the order of `matrices_of`. B/16 takes 38 seconds of
# one core to decompose, and every fold of an estimate needs the same factors.
_factors: WeakKeyDictionary[CLIP, tuple[list[Factors], list[Factors]]] = WeakKeyDictionary()


class SVDLinear(AdaptedLinear):
    """A linear layer (x·U · s)·Vᵀ + bias, with the factors of a frozen layer's kernel.

    The kernel is not formed: that would need its gradient, a larger product than the factors' two.

    Attributes:
        left: U.
        singular_values: s, the only variable that is trained.
        right: Vᵀ.
        bias: Bias of the frozen layer.
    """

    def __init__(self, bias: Frozen | None, factors: Factors):
        left, singular_values, right = factors
        self.left = Frozen(left)
        self.singular_values = Trainable(jnp.array(singular_values, copy=True))
        self.right = Frozen(right)
        self.bias = bias

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Applies the layer."""
        y = (x @ self.left[...] * self.singular_values[...]) @ self.right[...]
        return y if self.bias is None else y + self.bias[...]

    def merged(self) -> Linear:
        """Returns the layer with the kernel U · s · Vᵀ; see `AdaptedLinear`."""
        left, values, right = (
            np.asarray(factor[...], np.float64)
            for factor in (self.left, self.singular_values, self.right)
        )
        return ordinary_linear(left * values @ right, self.bias)


class ClipSVD(BothTowers):
    """Scaled cosines of the features of two towers whose singular values are trained."""

    name = "clip_svd"
    title = "CLIP-SVD"
    iterations_per_shot = 200
    learning_rate = 5e-4

    def __init__(
        self,
        clip: CLIP,
        class_names: tuple[str, ...],
        template: str,
        text_features: Float[Array, "k e"],
    ):
        check_has_attention(clip, self.name)
        image_factors, text_factors = factors_of(clip)
        adapted_encoder = decomposed(clip.image_encoder, image_factors)
        adapted_text = decomposed(clip.text, text_factors)
        super().__init__(clip, class_names, template, text_features, adapted_encoder, adapted_text)

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ClipSVD":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.class_names, first_template(config), task.text_features)

    @staticmethod
    def schedule(learning_rate: float, epochs: int, steps_per_epoch: int) -> optax.Schedule:
        """Returns a cosine decay to 1e-6."""
        return cosine(learning_rate, epochs * steps_per_epoch, FINAL_RATE)


def matrices_of(layer: TransformerLayer) -> list[tuple[nnx.Module, str]]:
    """Returns the module that holds each decomposed matrix, and its name there."""
    attention = [(layer.attention, part) for part in ("query", "key", "value", "out")]
    return [*attention, (layer, "fc1"), (layer, "fc2")]


def factors_of(clip: CLIP) -> tuple[list[Factors], list[Factors]]:
    """Returns the factors of the image tower's matrices and those of the text tower's."""
    if clip not in _factors:
        image, text = (
            [
                decompose(getattr(holder, name))
                for layer in layers_of(tower)
                for holder, name in matrices_of(layer)
            ]
            for tower in (clip.image_encoder, clip.text)
        )
        _factors[clip] = (image, text)
    return _factors[clip]


def decompose(linear: Linear) -> Factors:
    """Returns the factors of a layer's kernel, computed on the host in float64."""
    kernel = linear.kernel[...]
    left, singular_values, right = np.linalg.svd(
        np.asarray(kernel, np.float64), full_matrices=False
    )
    return jax.tree.map(lambda x: jnp.asarray(x, kernel.dtype), (left, singular_values, right))


def decomposed(tower: ModuleT, factors: list[Factors]) -> ModuleT:
    """Returns a copy of a frozen tower whose matrices are replaced by their factors."""
    copy = nnx.clone(tower)
    remaining = iter(factors)
    for layer in layers_of(copy):
        for holder, name in matrices_of(layer):
            setattr(holder, name, SVDLinear(getattr(holder, name).bias, next(remaining)))
    return copy
