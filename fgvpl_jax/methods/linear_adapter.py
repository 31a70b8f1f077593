"""Adapters that are trained on frozen features, in seconds and without validation images."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from fgvpl_jax.clip import CLIP
from fgvpl_jax.methods.fitted_once import NUM_PASSES, FittedOnce, folds_of, unit_views
from fgvpl_jax.methods.interface import FewShotFeatures, Task
from fgvpl_jax.recognition import normalize
from fgvpl_jax.variables import Trainable

STEPS = 300


class Problem(NamedTuple):
    """Data that an adapter is fitted to.

    Attributes:
        views: Unit features of the support images, one pass after the other.
        labels: Classes of the support images.
        text_features: Unit vectors w.
        logit_scale: The backbone's exp(logit_scale).
    """

    views: Float[Array, "r s e"]
    labels: Int[Array, "s"]
    text_features: Float[Array, "k e"]
    logit_scale: Float[Array, ""]


class LinearAdapter(FittedOnce):
    """Scaled cosines with one trained matrix; each step reads all support images of one pass.

    The passes are the views under the evaluation transform and ten augmented ones, in turn. The
    logits of held-out support images come from five more fits.

    Attributes:
        matrix: The trained matrix.
    """

    def __init__(self, clip: CLIP, task: Task, rule: str):
        super().__init__(clip, task, rule)
        self.matrix = Trainable(self.initial(task.text_features, jnp.asarray(clip.logit_scale)))

    @staticmethod
    def initial(
        text_features: Float[Array, "k e"], logit_scale: Float[Array, ""]
    ) -> Float[Array, "i j"]:
        """Returns the initial matrix, with which logits are zero-shot CLIP's."""
        raise NotImplementedError

    @staticmethod
    def adapter_logits(
        matrix: Float[Array, "i j"], features: Float[Array, "b e"], problem: Problem
    ) -> Float[Array, "b k"]:
        """Returns the logits of unit features."""
        raise NotImplementedError

    @staticmethod
    def penalty(matrix: Float[Array, "i j"], problem: Problem) -> Float[Array, ""]:
        """Returns the term that is added to the mean cross-entropy."""
        raise NotImplementedError

    @staticmethod
    def fit_optimizer(problem: Problem) -> optax.GradientTransformation:
        """Returns the optimizer of the 300 steps."""
        raise NotImplementedError

    def initialise(self, few_shot: FewShotFeatures) -> None:
        """Trains the matrix, and five more for the logits of held-out images."""
        views = unit_views(few_shot, NUM_PASSES).astype(np.float32).swapaxes(0, 1)
        labels = few_shot.labels
        folds = folds_of(labels, np.asarray(self.copies[...]))
        self.matrix.set_value(self._fitted(views, labels))
        held_out = np.zeros(self.held_out.shape, np.float32)
        problem = self._problem(views, labels)
        for fold in range(folds.max() + 1):
            out = folds == fold
            matrix = self._fitted(views[:, ~out], labels[~out])
            held_out[out] = self.adapter_logits(matrix, jnp.asarray(views[0, out]), problem)
        self.held_out.set_value(jnp.asarray(held_out))

    def logits(self, features: Float[Array, "b e"], support: None) -> Float[Array, "b k"]:
        """Returns the adapter's logits."""
        problem = self._problem(jnp.zeros((0, 0, features.shape[1])), jnp.zeros(0, jnp.int32))
        return self.adapter_logits(self.matrix[...], normalize(features), problem)

    def _problem(
        self,
        views: Float[Array | np.ndarray, "r s e"],
        labels: Int[Array | np.ndarray, "s"],
    ) -> Problem:
        texts, scale = self.text_features[...], self.logit_scale[...]
        return Problem(jnp.asarray(views), jnp.asarray(labels, jnp.int32), texts, scale)

    def _fitted(
        self, views: Float[np.ndarray, "r s e"], labels: Int[np.ndarray, "s"]
    ) -> Float[Array, "i j"]:
        return fitted(type(self), self._problem(views, labels))


@partial(jax.jit, static_argnums=0)
def fitted(method: type[LinearAdapter], problem: Problem) -> Float[Array, "i j"]:
    """Returns an adapter's matrix after all steps."""
    optimizer = method.fit_optimizer(problem)
    matrix = method.initial(problem.text_features, problem.logit_scale)

    def loss(matrix: Float[Array, "i j"], step: Int[Array, ""]) -> Float[Array, ""]:
        features = problem.views[step % len(problem.views)]
        logits = method.adapter_logits(matrix, features, problem)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, problem.labels)
        return losses.mean() + method.penalty(matrix, problem)

    def one_step(
        state: tuple[Float[Array, "i j"], optax.OptState], step: Int[Array, ""]
    ) -> tuple[tuple[Float[Array, "i j"], optax.OptState], None]:
        matrix, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(matrix, step), memory, matrix)
        return (matrix + updates, memory), None

    start = (matrix, optimizer.init(matrix))
    (matrix, _), _ = jax.lax.scan(one_step, start, jnp.arange(STEPS))
    return matrix
