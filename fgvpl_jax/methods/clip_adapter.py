"""CLIP-Adapter: a bottleneck on the image feature, mixed with the feature."""

import jax
from flax import nnx
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.coop import CoOpLoop
from fgvpl_jax.methods.interface import Task
from fgvpl_jax.variables import Trainable

REDUCTION = 4
RATIO = 0.2  # weight of the adapted feature

# Uniform within ±1/sqrt(inputs), PyTorch's initial values of a linear layer.
_kernel = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class ClipAdapter(CoOpLoop):
    """Scaled cosines of 0.2 · relu(relu(f·down)·up) + 0.8 · f with the text weights; f is raw.

    Attributes:
        down: Matrix [e, e/4].
        up: Matrix [e/4, e].
    """

    name = "clip_adapter"
    title = "CLIP-Adapter"

    def __init__(self, clip: CLIP, text_features: Float[Array, "k e"], *, rngs: nnx.Rngs):
        super().__init__(clip, text_features)
        dim = text_features.shape[1]
        hidden = dim // REDUCTION
        self.down = Trainable(_kernel(rngs.params(), (dim, hidden)))
        self.up = Trainable(_kernel(rngs.params(), (hidden, dim)))

    @classmethod
    def build(cls, clip: CLIP, task: Task, config: ConfigDict, *, rngs: nnx.Rngs) -> "ClipAdapter":
        """Builds the model; see `Method.build`."""
        return cls(clip, task.text_features, rngs=rngs)

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns scaled cosines of the adapted features with the text weights."""
        adapted = jax.nn.relu(jax.nn.relu(features @ self.down[...]) @ self.up[...])
        return self.text_logits(RATIO * adapted + (1 - RATIO) * features)
