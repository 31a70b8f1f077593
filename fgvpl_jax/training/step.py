"""One optimisation step: what is differentiated, what is updated, what is donated."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from fgvpl_jax.methods import FGVPL
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.variables import Frozen, Trainable


class TrainState(NamedTuple):
    """All that changes in training: the trainable variables and the optimizer's state."""

    trainable: nnx.State
    optimizer: optax.OptState | None


class StepBatch(NamedTuple):
    """The part of a batch that goes to the device; `weights` is 0 for padding."""

    images: UInt8[Array | np.ndarray, "b H W 3"]
    labels: Int[Array | np.ndarray, "b"]
    weights: Float[Array | np.ndarray, "b"]


class StepMetrics(NamedTuple):
    """Sums over the batch's real images, to be divided by `weight`."""

    loss: Float[Array | np.ndarray, ""]
    correct: Float[Array | np.ndarray, ""]
    weight: Float[Array | np.ndarray, ""]


TrainStep = Callable[
    [TrainState, nnx.State, VisualCache, Float[Array, ""], StepBatch],
    tuple[TrainState, StepMetrics],
]


def cosine_schedule(learning_rate: float, total_steps: int) -> optax.Schedule:
    """From a step's number, counting from 0, to its learning rate: a cosine that ends at 0."""
    return optax.cosine_decay_schedule(learning_rate, decay_steps=total_steps)


@cache
def make_optimizer(
    learning_rate: float, weight_decay: float, total_steps: int
) -> optax.GradientTransformation:
    """AdamW with a cosine from `learning_rate` to 0 over all steps.

    The same numbers give the same object, so that the folds of an estimate share one compiled step.
    """
    return optax.adamw(cosine_schedule(learning_rate, total_steps), weight_decay=weight_decay)


def split_model(model: FGVPL) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Parts a model by variable type: (graphdef, trainable, frozen); another type is an error."""
    return nnx.split(model, Trainable, Frozen)  # type: ignore[return-value]  # typed as variadic


def weighted_loss(
    logits: Float[Array, "b k"], batch: StepBatch
) -> tuple[Float[Array, ""], StepMetrics]:
    """Mean cross-entropy over the real images, and the sums behind it."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    weight = batch.weights.sum()
    loss = jnp.sum(losses * batch.weights)
    correct = jnp.sum((logits.argmax(axis=-1) == batch.labels) * batch.weights)
    return loss / weight, StepMetrics(loss, correct, weight)


@cache
def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> TrainStep:
    """Compiles the step for one model structure and one optimizer.

    Returns:
        step(state, frozen, cache, cache_logit_weight, batch) -> (state, metrics). `state` is
        donated: use the returned one. Frozen variables are an argument, so the program holds no
        weights as constants; only the trainable ones are differentiated.
    """

    def train_step(state, frozen, support, cache_logit_weight, batch):
        def loss_of(trainable):
            model = nnx.merge(graphdef, trainable, frozen)
            logits = model(batch.images, support, cache_logit_weight)
            return weighted_loss(logits, batch)

        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(trainable, optimizer_state), metrics

    return jax.jit(train_step, donate_argnums=0)
