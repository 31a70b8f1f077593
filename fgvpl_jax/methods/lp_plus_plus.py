"""LP++: a linear classifier blended with the class texts, without a learning rate to tune."""

from typing import NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fgvpl_jax.methods.linear_adapter import LinearAdapter, Problem

# The softmax's matrix diag(p) - p pᵀ has no eigenvalue above 1/2.
LARGEST_CURVATURE = 0.5


class LPPlusPlus(LinearAdapter):
    """Logits of class k = f · (w_k + α_k t_k), with learnt w and α and the text weights t.

    The matrix, [k, e+1], holds w, which begins at 0, and in its last column α, which begins at
    CLIP's logit scale. Steps on cross-entropy alternate between the two. Their sizes are one over a
    bound on the curvature of the block, so they never raise the loss of the images that they read.
    """

    name = "lp_plus_plus"
    title = "LP++"

    @staticmethod
    def initial(
        text_features: Float[Array, "k e"], logit_scale: Float[Array, ""]
    ) -> Float[Array, "i j"]:
        """Returns w = 0 and α = the logit scale."""
        count = len(text_features)
        return jnp.concatenate(
            [jnp.zeros_like(text_features), jnp.full((count, 1), logit_scale)], axis=1
        )

    @staticmethod
    def adapter_logits(
        matrix: Float[Array, "i j"], features: Float[Array, "b e"], problem: Problem
    ) -> Float[Array, "b k"]:
        """Returns f · (w_k + α_k t_k)."""
        weights = matrix[:, :-1] + matrix[:, -1:] * problem.text_features
        return features @ weights.T

    @staticmethod
    def penalty(matrix: Float[Array, "i j"], problem: Problem) -> Float[Array, ""]:
        """Returns 0."""
        return jnp.zeros(())

    @staticmethod
    def fit_optimizer(problem: Problem) -> optax.GradientTransformation:
        """Returns alternating gradient descent."""
        return alternating_descent(*step_sizes(problem))


class Count(NamedTuple):
    """Number of steps done."""

    steps: Int[Array, ""]


def step_sizes(problem: Problem) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the steps of w and α: one over the largest curvature in any pass."""
    views = problem.views
    scatter = jnp.einsum("rse,rsd->red", views, views) / views.shape[1]
    similarity = jnp.square(views @ problem.text_features.T).mean(axis=1)
    largest = jnp.linalg.eigvalsh(scatter).max(), similarity.max()
    of_w, of_alpha = (1 / (LARGEST_CURVATURE * value) for value in largest)
    return of_w, of_alpha


def alternating_descent(
    of_w: Float[Array, ""], of_alpha: Float[Array, ""]
) -> optax.GradientTransformation:
    """Returns steps that change w and the last column in turn."""

    def update(
        gradient: Float[Array, "k j"], state: Count, params: Float[Array, "k j"] | None = None
    ) -> tuple[Float[Array, "k j"], Count]:
        is_alpha = jnp.arange(gradient.shape[1]) == gradient.shape[1] - 1
        sizes = jnp.where(is_alpha, of_alpha, of_w)
        moves = is_alpha == (state.steps % 2 == 1)
        return -gradient * sizes * moves, Count(state.steps + 1)

    return optax.GradientTransformation(lambda params: Count(jnp.int32(0)), update)
