"""One optimisation step: loss, gradients, update, and the programs that are compiled from it."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from PIL import Image

from fgvpl_jax.methods import Method
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.mesh import replicated, split_rows
from fgvpl_jax.training.resident import Crops, EpochDraw, rows_of_step
from fgvpl_jax.variables import Frozen, Trainable
from fgvpl_jax.visual_prompt import TokensBelow

Tree = TypeVar("Tree")

# Number of model structures whose compiled programs stay in memory. A run needs one; a sweep of
# many shapes in one process would otherwise keep the programs of all its cells.
PROGRAMS_KEPT = 4


class TrainState(NamedTuple):
    """Everything that a step changes: the trainable variables and the optimizer's state."""

    trainable: nnx.State
    optimizer: optax.OptState | None


class StepBatch(NamedTuple):
    """The part of a batch that goes to the device.

    Attributes:
        inputs: Pixels, features or tokens, whichever the method reads, or the crops to take of
            resident photos.
        labels: True classes.
        weights: 1 for a real image, 0 for padding.
        places: Places in the support set, and so in its cache; -1 for padding. None if no image
            needs its own place.
    """

    inputs: (
        UInt8[Array | np.ndarray, "b H W 3"]
        | Float[Array | np.ndarray, "b e"]
        | TokensBelow
        | Crops
    )
    labels: Int[Array | np.ndarray, "b"]
    weights: Float[Array | np.ndarray, "b"]
    places: Int[Array | np.ndarray, "b"] | None = None


class StepMetrics(NamedTuple):
    """Sums over the real images of a batch; divide them by `weight`."""

    loss: Float[Array | np.ndarray, ""]
    correct: Float[Array | np.ndarray, ""]
    weight: Float[Array | np.ndarray, ""]


# Values such as λ, by the names of the arguments of `Method.logits`.
ChoiceArrays = Mapping[str, Float[Array | np.ndarray, ""]]

TrainStep = Callable[
    [
        TrainState,
        nnx.State,
        VisualCache | None,
        ChoiceArrays,
        StepBatch,
    ],
    tuple[TrainState, StepMetrics],
]

ResidentTrainStep = Callable[
    [
        TrainState,
        nnx.State,
        VisualCache | None,
        ChoiceArrays,
        UInt8[Array, "s H H 3"],
        EpochDraw,
        Int[Array, ""],
        Int[Array, ""],
    ],
    tuple[TrainState, StepMetrics],
]


def split_model(model: Method) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """Splits a model by variable type: (graphdef, trainable, frozen); other types are errors."""
    return nnx.split(model, Trainable, Frozen)  # type: ignore[return-value]  # typed as variadic


def weighted_loss(
    logits: Float[Array, "b k"], batch: StepBatch, total_weight: Float[Array, ""] | None = None
) -> tuple[Float[Array, ""], StepMetrics]:
    """Returns the mean cross-entropy over the real images, and the sums behind it.

    Args:
        logits: One row per image.
        batch: Labels and weights of the rows.
        total_weight: Divisor of the mean; None for the weight of these rows. With the weight of
            the whole batch, losses and gradients of its parts add up to those of the whole.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    weight = batch.weights.sum()
    loss = jnp.sum(losses * batch.weights)
    correct = jnp.sum((logits.argmax(axis=-1) == batch.labels) * batch.weights)
    mean = loss / (weight if total_weight is None else total_weight)
    return mean, StepMetrics(loss, correct, weight)


def own_places(model: Method, batch: StepBatch) -> dict[str, Any]:
    """Returns the argument that keeps an image from matching itself, if the model uses it."""
    return {"own_places": batch.places} if model.leave_one_out else {}


@lru_cache(maxsize=PROGRAMS_KEPT)
def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_passes: int = 1,
) -> TrainStep:
    """Compiles the step for one model structure and one optimizer.

    Args:
        graphdef: Structure of the model.
        optimizer: Optimizer of the trainable variables.
        mesh: Devices that the batch is split over.
        num_passes: Number of parts of the batch that go through the model one after the other, to
            save memory, and on a CPU time; see `BatchLayout`.
    Returns:
        step(state, frozen, support, choices, batch) -> (state, metrics). `support` is the visual
        cache or None, `choices` are keyword arguments of the method's logits. `state` is donated:
        use the returned one. Frozen variables are an argument, so the program holds no weights as
        constants; only trainable variables are differentiated.
    """
    step = partial(optimisation_step, graphdef, optimizer, mesh, num_passes, lambda inputs: inputs)
    return jax.jit(step, donate_argnums=0, out_shardings=replicated(mesh))


@lru_cache(maxsize=PROGRAMS_KEPT)
def make_resident_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_passes: int,
    image_size: int,
    resample: Image.Resampling,
) -> ResidentTrainStep:
    """Compiles any number of an epoch's steps as one program, which also crops the photos.

    Args:
        graphdef: Structure of the model.
        optimizer: Optimizer of the trainable variables.
        mesh: Devices that the rows of each step are split over.
        num_passes: See `make_train_step`.
        image_size: Side of the crops in pixels.
        resample: Pillow's filter for the crops.
    Returns:
        steps(state, frozen, support, choices, canvases, draw, first, last) -> (state, metrics).
        It does the steps from `first` to `last` - 1 of an epoch; metrics are arrays over all steps
        of the epoch, 0 for steps that were not done. `state` is donated. Both bounds are traced.
    """

    def train_steps(
        state: TrainState,
        frozen: nnx.State,
        support: VisualCache | None,
        choices: Mapping[str, Any],
        canvases: UInt8[Array, "s H H 3"],
        draw: EpochDraw,
        first: Int[Array, ""],
        last: Int[Array, ""],
    ) -> tuple[TrainState, StepMetrics]:
        def read(crops: Crops) -> Array:
            return crops.pixels(canvases, size=image_size, mesh=mesh, resample=resample)

        def one(step: Int[Array, ""], state: TrainState) -> tuple[TrainState, StepMetrics]:
            crops, labels, weights = jax.lax.with_sharding_constraint(
                rows_of_step(draw, step), split_rows(mesh)
            )
            batch = StepBatch(crops, labels, weights, crops.places)
            return optimisation_step(
                graphdef, optimizer, mesh, num_passes, read, state, frozen, support, choices, batch
            )

        def add(
            step: Int[Array, ""], carried: tuple[TrainState, StepMetrics]
        ) -> tuple[TrainState, StepMetrics]:
            state, metrics = carried
            state, of_step = one(step, state)
            return state, jax.tree.map(lambda column, x: column.at[step].set(x), metrics, of_step)

        metrics = zero_metrics(draw.weights.dtype, len(draw.weights))
        return jax.lax.fori_loop(first, last, add, (state, metrics))

    return jax.jit(train_steps, donate_argnums=0, out_shardings=replicated(mesh))


def optimisation_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    num_passes: int,
    read: Callable[[Any], Any],
    state: TrainState,
    frozen: nnx.State,
    support: VisualCache | None,
    choices: Mapping[str, Any],
    batch: StepBatch,
) -> tuple[TrainState, StepMetrics]:
    """Does one step; must be called under jit.

    `read` converts the inputs of a part of the batch to what the model takes.
    """
    total_weight = batch.weights.sum()

    def gradients_of(part: StepBatch) -> tuple[nnx.State, StepMetrics]:
        inputs = read(part.inputs)

        def loss_of(trainable: nnx.State) -> tuple[Float[Array, ""], StepMetrics]:
            model = nnx.merge(graphdef, trainable, frozen)
            places = own_places(model, part)
            logits = model.training_logits(inputs, support, **choices, **places)
            return weighted_loss(logits, part, total_weight)

        (_, metrics), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.trainable)
        return gradients, metrics

    zeros = (jax.tree.map(jnp.zeros_like, state.trainable), zero_metrics(batch.weights.dtype))
    gradients, metrics = sum_over_parts(gradients_of, batch, mesh, num_passes, zeros)
    updates, optimizer_state = optimizer.update(gradients, state.optimizer, state.trainable)
    model = nnx.merge(graphdef, optax.apply_updates(state.trainable, updates), frozen)
    model.after_step()
    _, trainable, _ = split_model(model)
    return TrainState(trainable, optimizer_state), metrics


def zero_metrics(dtype: Any, *shape: int) -> StepMetrics:
    """Returns zero metrics of this shape, in the type of a batch's weights."""
    return StepMetrics(*(jnp.zeros(shape, dtype) for _ in StepMetrics._fields))


def sum_over_parts(
    function: Callable[[StepBatch], Tree],
    batch: StepBatch,
    mesh: Mesh,
    num_parts: int,
    zeros: Tree,
) -> Tree:
    """Returns the sum of a function over the parts of a batch, one part in memory at a time.

    Args:
        function: Function of a part.
        batch: The batch.
        mesh: Devices that the rows are split over.
        num_parts: Number of parts.
        zeros: Zeros in the structure, shapes and types of the function's result; finding these
            here would trace the function once more.
    """
    if num_parts == 1:
        return function(batch)

    def part(rows: Array) -> Array:
        # Every device keeps its rows, and has equally many of each part.
        by_device = rows.reshape(mesh.size, num_parts, -1, *rows.shape[1:])
        parts = by_device.swapaxes(0, 1).reshape(num_parts, -1, *rows.shape[1:])
        return jax.lax.with_sharding_constraint(parts, split_rows(mesh, axis=1))

    parts = jax.tree.map(part, batch)

    def add(total: Tree, part: StepBatch) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, function(part)), None

    return jax.lax.scan(add, zeros, parts)[0]
