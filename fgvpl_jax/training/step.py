"""One optimisation step: what is differentiated, what is updated, what is donated."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from fgvpl_jax.methods import Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.variables import Frozen, Trainable


class TrainState(NamedTuple):
    """All that changes in training: the trainable variables and the optimizer's state."""

    trainable: nnx.State
    optimizer: optax.OptState | None


class StepBatch(NamedTuple):
    """The part of a batch that goes to the device.

    Attributes:
        inputs: uint8 [b, H, W, 3] or features [b, e], as the method reads.
        labels: True classes.
        weights: 0 for padding.
        places: In the support set and so in its cache; -1 for padding. None where no image needs
            to know its own.
    """

    inputs: UInt8[Array | np.ndarray, "b H W 3"] | Float[Array | np.ndarray, "b e"]
    labels: Int[Array | np.ndarray, "b"]
    weights: Float[Array | np.ndarray, "b"]
    places: Int[Array | np.ndarray, "b"] | None = None


class StepMetrics(NamedTuple):
    """Sums over the batch's real images, to be divided by `weight`."""

    loss: Float[Array | np.ndarray, ""]
    correct: Float[Array | np.ndarray, ""]
    weight: Float[Array | np.ndarray, ""]


TrainStep = Callable[
    [
        TrainState,
        nnx.State,
        VisualCache | None,
        dict[str, Float[Array | np.ndarray, ""]],
        StepBatch,
    ],
    tuple[TrainState, StepMetrics],
]


def split_model(model: Method) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
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


def own_places(model: Method, batch: StepBatch) -> dict[str, Any]:
    """What keeps an image from matching itself in the cache, where the model wants that."""
    return {"own_places": batch.places} if model.leave_one_out else {}


@cache
def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> TrainStep:
    """Compiles the step for one model structure and one optimizer.

    Returns:
        step(state, frozen, support, choices, batch) -> (state, metrics). `support` is what the
        method's logits take beside the features, `choices` their keyword arguments. `state` is
        donated: use the returned one. Frozen variables are an argument, so the program holds no
        weights as constants; only the trainable ones are differentiated.
    """

    def train_step(state, frozen, support, choices, batch):
        def loss_of(trainable):
            model = nnx.merge(graphdef, trainable, frozen)
            logits = model(batch.inputs, support, **choices, **own_places(model, batch))
            return weighted_loss(logits, batch)

        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(trainable, optimizer_state), metrics

    return jax.jit(train_step, donate_argnums=0)
