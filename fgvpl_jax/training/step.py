"""One optimisation step: what is differentiated, what is updated, what is donated."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8

from fgvpl_jax.methods import Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.mesh import replicated, split_rows
from fgvpl_jax.variables import Frozen, Trainable

Tree = TypeVar("Tree")


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
        Mapping[str, Float[Array | np.ndarray, ""]],
        StepBatch,
    ],
    tuple[TrainState, StepMetrics],
]


def split_model(model: Method) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Parts a model by variable type: (graphdef, trainable, frozen); another type is an error."""
    return nnx.split(model, Trainable, Frozen)  # type: ignore[return-value]  # typed as variadic


def weighted_loss(
    logits: Float[Array, "b k"], batch: StepBatch, total_weight: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], StepMetrics]:
    """Mean cross-entropy over the real images, and the sums behind it.

    Args:
        logits: One row an image.
        batch: Labels and weights of the rows.
        total_weight: What to divide by; None for these rows' own weight. With that of the whole
            batch, losses and gradients of its parts add up to the whole's.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    weight = batch.weights.sum()
    loss = jnp.sum(losses * batch.weights)
    correct = jnp.sum((logits.argmax(axis=-1) == batch.labels) * batch.weights)
    mean = loss / (weight if total_weight is None else total_weight)
    return mean, StepMetrics(loss, correct, weight)


def own_places(model: Method, batch: StepBatch) -> dict[str, Any]:
    """What keeps an image from matching itself in the cache, where the model wants that."""
    return {"own_places": batch.places} if model.leave_one_out else {}


@cache
def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_passes: int = 1,
) -> TrainStep:
    """Compiles the step for one model structure and one optimizer.

    Args:
        graphdef: Structure of the model.
        optimizer: Of the trainable variables.
        mesh: Devices that the batch is split over.
        num_passes: Parts of the batch that go through the model one after the other, to save
            memory; see `BatchLayout`.
    Returns:
        step(state, frozen, support, choices, batch) -> (state, metrics). `support` is what the
        method's logits take beside the features, `choices` their keyword arguments. `state` is
        donated: use the returned one. Frozen variables are an argument, so the program holds no
        weights as constants; only the trainable ones are differentiated.
    """

    def train_step(state, frozen, support, choices, batch):
        total_weight = batch.weights.sum()

        def gradients_of(part):
            def loss_of(trainable):
                model = nnx.merge(graphdef, trainable, frozen)
                logits = model(part.inputs, support, **choices, **own_places(model, part))
                return weighted_loss(logits, part, total_weight)

            (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
            return gradients, metrics

        gradients, metrics = sum_over_parts(gradients_of, batch, mesh, num_passes)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        return TrainState(trainable, optimizer_state), metrics

    return jax.jit(train_step, donate_argnums=0, out_shardings=replicated(mesh))


def sum_over_parts(
    function: Callable[[StepBatch], Tree], batch: StepBatch, mesh: Mesh, num_parts: int
) -> Tree:
    """The sum of a function of each part, one part in memory at a time."""
    if num_parts == 1:
        return function(batch)

    def part(rows):
        # Every device keeps its rows: of each part it has as many.
        by_device = rows.reshape(mesh.size, num_parts, -1, *rows.shape[1:])
        parts = by_device.swapaxes(0, 1).reshape(num_parts, -1, *rows.shape[1:])
        return jax.lax.with_sharding_constraint(parts, split_rows(mesh, axis=1))

    parts = jax.tree.map(part, batch)
    shapes = jax.eval_shape(function, jax.tree.map(lambda rows: rows[0], parts))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)

    def add(total, part):
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, parts)[0]
