"""RLA: a regularised linear adapter of the image feature, from the authors of ProLIP."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fgvpl_jax.methods.linear_adapter import STEPS, LinearAdapter, Problem
from fgvpl_jax.methods.optimizers import cosine
from fgvpl_jax.recognition import normalize

# Its authors report rates from 1e-5 to 1e-2 as about equally good.
LEARNING_RATE = 1e-3


class RLA(LinearAdapter):
    """Scaled cosines of f·W with the text weights; W, [e, e], begins as the identity.

    Minimises cross-entropy + λ ‖W - I‖² (Frobenius) with λ = 1 / shots, by 300 steps of Adam with a
    cosine. Of unequal classes, shots is the mean.
    """

    name = "rla"
    title = "RLA"

    @staticmethod
    def initial(
        text_features: Float[Array, "k e"], logit_scale: Float[Array, ""]
    ) -> Float[Array, "i j"]:
        """Returns the identity."""
        return jnp.eye(text_features.shape[1])

    @staticmethod
    def adapter_logits(
        matrix: Float[Array, "i j"], features: Float[Array, "b e"], problem: Problem
    ) -> Float[Array, "b k"]:
        """Returns scaled cosines of the adapted features."""
        return problem.logit_scale * normalize(features @ matrix) @ problem.text_features.T

    @staticmethod
    def penalty(matrix: Float[Array, "i j"], problem: Problem) -> Float[Array, ""]:
        """Returns λ ‖W - I‖²."""
        shots = len(problem.labels) / len(problem.text_features)
        return jnp.sum(jnp.square(matrix - jnp.eye(len(matrix)))) / shots

    @staticmethod
    def fit_optimizer(problem: Problem) -> optax.GradientTransformation:
        """Returns Adam."""
        return optax.adam(cosine(LEARNING_RATE, STEPS))
