"""CLAP: a linear classifier that is held near the class texts where zero-shot CLIP is right."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from fgvpl_jax.methods.linear_adapter import STEPS, LinearAdapter, Problem
from fgvpl_jax.methods.optimizers import cosine
from fgvpl_jax.recognition import normalize

LEARNING_RATE = 0.1
MOMENTUM = 0.9


class CLAP(LinearAdapter):
    """Scaled cosines with prototypes [k, e], which begin at the text weights t.

    Minimises cross-entropy + mean over classes of a_k ‖prototype_k - t_k‖². The multiplier a_k is
    zero-shot CLIP's mean probability of the true class at the support images of class k, in all
    views; it is computed once. 300 steps of SGD with momentum and a cosine.
    """

    name = "clap"
    title = "CLAP"

    @staticmethod
    def initial(
        text_features: Float[Array, "k e"], logit_scale: Float[Array, ""]
    ) -> Float[Array, "i j"]:
        """Returns the text weights."""
        return text_features

    @staticmethod
    def adapter_logits(
        matrix: Float[Array, "i j"], features: Float[Array, "b e"], problem: Problem
    ) -> Float[Array, "b k"]:
        """Returns scaled cosines with the prototypes."""
        return problem.logit_scale * features @ normalize(matrix).T

    @staticmethod
    def penalty(matrix: Float[Array, "i j"], problem: Problem) -> Float[Array, ""]:
        """Returns the mean of a_k ‖prototype_k - t_k‖²."""
        distances = jnp.sum(jnp.square(matrix - problem.text_features), axis=1)
        return jnp.mean(multipliers(problem) * distances)

    @staticmethod
    def fit_optimizer(problem: Problem) -> optax.GradientTransformation:
        """Returns SGD."""
        return optax.sgd(cosine(LEARNING_RATE, STEPS), momentum=MOMENTUM)


def multipliers(problem: Problem) -> Float[Array, "k"]:
    """Returns a of each class; 0 for a class without an image."""
    logits = problem.logit_scale * problem.views @ problem.text_features.T
    own = jax.nn.one_hot(problem.labels, len(problem.text_features))
    right = (jax.nn.softmax(logits) * own).mean(axis=0)
    return right.sum(axis=0) / jnp.maximum(own.sum(axis=0), 1)
