"""The feature adapters p and q, which also fix the order of normalisation and adaptation."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from fgvpl_jax.variables import Trainable, to_device

KERNEL_STD = 0.02
# A vector of a smaller squared norm counts as zero (padding): it stays zero, with finite gradients.
SMALLEST_SQUARED_NORM = 1e-24


def normalize(features: Float[Array, "*b e"]) -> Float[Array, "*b e"]:
    """Returns the features L2-normalised over the last axis; a zero vector stays zero."""
    squared = jnp.sum(jnp.square(features), axis=-1, keepdims=True)
    return features * jax.lax.rsqrt(jnp.maximum(squared, SMALLEST_SQUARED_NORM))


class FeatureAdapter(nnx.Module):
    """A linear layer e -> e with ReLU and a residual connection (Eqs. 10, 13-16).

    Attributes:
        kernel: Matrix [e, e], initially normal with std 0.02.
        bias: Vector [e], initially zero.
    """

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.kernel = Trainable(nnx.initializers.normal(KERNEL_STD)(rngs.params(), (dim, dim)))
        self.bias = Trainable(to_device(np.zeros(dim)))

    def __call__(
        self, features: Float[Array, "*b e"], ratio: Float[Array, ""] | float = 1.0
    ) -> Float[Array, "*b e"]:
        """Normalises, computes ratio · relu(x·kernel + bias) + x, and normalises again (L2).

        Args:
            features: Raw or normalised features.
            ratio: Weight of the adapted features: α in Eq. 10, 1 in Eqs. 13-16.
        Returns:
            Unit vectors, ready to be compared by dot product.
        """
        unit = normalize(features)
        adapted = jax.nn.relu(unit @ self.kernel[...] + self.bias[...])
        return normalize(ratio * adapted + unit)
