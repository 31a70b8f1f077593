"""Runs a trained model over a split, with one jitted program from the inputs to the logits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from tqdm import tqdm

from fgvpl_jax.data import PADDING, Batch, Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation.candidate_losses import tempered_losses
from fgvpl_jax.methods import Choices
from fgvpl_jax.methods.held_out import LIKELIHOOD, first_of_the_best
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import (
    PROGRAMS_KEPT,
    Inputs,
    batch_size_for,
    gather_texts,
    images_at_once_of,
    in_parts,
    is_writer,
    one_behind,
    process_share,
    replicate,
    split_batch,
    to_host,
)

ModelState = tuple[nnx.State, nnx.State]  # trainable, frozen


@dataclass(frozen=True)
class Predictions:
    """Logits of the readable images of a split, in the order of the split.

    Attributes:
        logits: Logits of the trained model.
        zero_shot_logits: Logits of plain CLIP, from the same pixels.
        labels: True classes.
        object_masks: Patches of the object, row-major; None for a method without object masks.
        indices: Positions of the images in the split.
        unreadable: "path: reason" for every image that could not be decoded.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    object_masks: Bool[np.ndarray, "N n"] | None
    indices: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """Accuracy of a method's candidates on a validation split, which may have no readable image.

    Attributes:
        accuracies: Accuracy of each candidate; empty where no image is readable.
        best: Index of the candidate that the rule chooses; 0 where no image is readable.
        logits: Logits with the best candidate.
        labels: True classes.
        unreadable: "path: reason" for every image that could not be decoded.
    """

    accuracies: Float[np.ndarray, "c"]
    best: int
    logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


class Programs(NamedTuple):
    """Jitted functions of an evaluator; their first argument is (trainable, frozen).

    Attributes:
        outputs: Maps inputs to logits, zero-shot logits, and object masks or None.
        features: Maps inputs to features.
        logits: Maps features to logits.
        num_correct: Maps features and arrays of choices to the number of correct predictions with
            each choice.
        losses: Maps features and arrays of choices to the loss of every image with each choice;
            features, labels and weights are sequences of batches.
    """

    outputs: Callable
    features: Callable
    logits: Callable
    num_correct: Callable
    losses: Callable


# A run needs at most three: the folds of a cross-validation may differ in size by one image, and
# the final model has all images. More would keep the programs of a sweep's earlier cells.
@lru_cache(maxsize=PROGRAMS_KEPT)
def compile_programs(graphdef: nnx.GraphDef) -> Programs:
    """Returns the programs of one model structure, which all evaluators of it share."""

    @jax.jit
    def outputs(
        state: ModelState,
        support: VisualCache | None,
        choices: Mapping[str, Float[Array, ""]],
        inputs: Array,
    ) -> tuple[Float[Array, "b k"], Float[Array, "b k"], Bool[Array, "b n"] | None]:
        model = nnx.merge(graphdef, *state)

        def encoded(inputs: Array) -> tuple[Any, Float[Array, "p k"]]:
            return model.features(inputs), model.zero_shot_logits(inputs)

        features, zero_shot = in_parts(encoded, inputs, images_at_once_of(model, inputs))
        logits = model.logits(features, support, **choices)
        masks = features.object_mask if model.finds_objects else None
        return logits, zero_shot, masks

    @jax.jit
    def features(state: ModelState, inputs: Array) -> Any:
        model = nnx.merge(graphdef, *state)
        return in_parts(model.features, inputs, images_at_once_of(model, inputs))

    @jax.jit
    def logits(
        state: ModelState,
        support: VisualCache | None,
        choices: Mapping[str, Float[Array, ""]],
        features: Any,
    ) -> Float[Array, "b k"]:
        return nnx.merge(graphdef, *state).logits(features, support, **choices)

    @jax.jit
    def num_correct(
        state: ModelState,
        support: VisualCache | None,
        candidates: Mapping[str, Float[Array, "c"]],
        features: Any,
        labels: Int[Array, "b"],
        weights: Float[Array, "b"],
    ) -> Float[Array, "c"]:
        model = nnx.merge(graphdef, *state)

        def with_choices(choices: Mapping[str, Float[Array, ""]]) -> Float[Array, ""]:
            predicted = model.logits(features, support, **choices).argmax(axis=1)
            return jnp.sum((predicted == labels) * weights)

        return jax.lax.map(with_choices, candidates)

    @jax.jit
    def losses(
        state: ModelState,
        support: VisualCache | None,
        candidates: Mapping[str, Float[Array, "c"]],
        features: Sequence[Any],
        labels: Sequence[Int[Array, "b"]],
        weights: Sequence[Float[Array, "b"]],
    ) -> Float[Array, "c N"]:
        model = nnx.merge(graphdef, *state)
        every = jax.tree.map(lambda *parts: jnp.concatenate(parts), *features)
        truth, real = jnp.concatenate(labels), jnp.concatenate(weights)

        def with_choices(choices: Mapping[str, Float[Array, ""]]) -> Float[Array, "N"]:
            return tempered_losses(model.logits(every, support, **choices), truth, real)

        return jax.lax.map(with_choices, candidates)

    return Programs(outputs, features, logits, num_correct, losses)


class Evaluator:
    """A model with its final parameters and the visual cache built with them.

    Args:
        graphdef: Structure of the model.
        trainable: Final values of the trainable variables.
        frozen: Frozen variables.
        cache: Visual cache built with the final parameters; None for a method without one.
        inputs: Source of the batches that the model reads.
        batch_size: Images per step.
        mesh: Devices; the variables and the cache must already be on them.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        trainable: nnx.State,
        frozen: nnx.State,
        cache: VisualCache | None,
        *,
        inputs: Inputs,
        batch_size: int,
        mesh: Mesh,
    ):
        self._state = (trainable, frozen)
        self._cache = cache
        self._inputs = inputs
        self._batch_size = batch_size
        self._mesh = mesh
        self._programs = compile_programs(graphdef)

    def predict(self, split: Split, choices: Choices, *, name: str) -> Predictions:
        """Returns the logits of every readable image of a split.

        Args:
            split: Images to predict; read once, in order.
            choices: Values chosen on validation, such as λ; see `Method.candidates`.
            name: Name of the split on the progress line.
        Raises:
            UserError: If no image is readable.
        """
        values = self._on_devices(choices)
        unreadable: list[str] = []

        def dispatched() -> Iterator[tuple]:
            for batch in self._batches(split, name):
                unreadable.extend(batch.unreadable)
                inputs, weights, labels, indices = split_batch(
                    self._mesh, (batch.inputs, batch.weights, batch.labels, batch.indices)
                )
                outputs = self._programs.outputs(self._state, self._cache, values, inputs)
                yield weights, (*outputs, labels, indices)

        columns = [readable_rows(*found) for found in one_behind(dispatched())]
        logits, zero_shot, masks, labels, indices = in_order_of_last(columns)
        unreadable = gather_texts(unreadable)
        if not len(labels):
            raise UserError(f"none of the {len(split)} {name} images can be read: {unreadable[0]}")
        return Predictions(logits, zero_shot, labels, masks, indices, tuple(unreadable))

    def choose(self, split: Split, candidates: Sequence[Choices], rule: str) -> Selection:
        """Compares candidates on a validation split.

        Encodes the images once and evaluates all candidates in one program, without retracing.

        Args:
            split: Validation images; never the test split.
            candidates: At least one; among equally good candidates the first wins.
            rule: "accuracy" or "likelihood"; see `SelectionRule`.
        """
        grid = self._on_devices({name: [c[name] for c in candidates] for name in candidates[0]})
        counts: list[Any] = []
        encoded: list[tuple] = []
        unreadable: list[str] = []
        for batch in self._batches(split, "validation"):
            unreadable += batch.unreadable
            inputs, labels, weights, indices = split_batch(
                self._mesh, (batch.inputs, batch.labels, batch.weights, batch.indices)
            )
            features = self._programs.features(self._state, inputs)
            jax.block_until_ready(encoded[-1:])  # to keep at most two batches on the devices
            encoded.append((features, labels, weights, indices))
            if len(candidates) > 1:
                counts.append(
                    self._programs.num_correct(
                        self._state, self._cache, grid, features, labels, weights
                    )
                )
        correct = np.sum(to_host(counts), axis=0) if counts else np.zeros(len(candidates))
        best = int(correct.argmax())
        if rule == LIKELIHOOD and len(candidates) > 1:
            best = self._most_likely(grid, encoded)
        chosen = self._on_devices(candidates[best])
        columns = []
        for features, labels, weights, indices in encoded:
            logits = self._programs.logits(self._state, self._cache, chosen, features)
            columns.append(readable_rows(weights, (logits, labels, indices)))
        logits, truth, _ = in_order_of_last(columns)
        if len(candidates) == 1:
            correct[0] = (logits.argmax(axis=1) == truth).sum()
        accuracies = correct / len(truth) if len(truth) else np.empty(0)
        return Selection(accuracies, best, logits, truth, tuple(gather_texts(unreadable)))

    def _most_likely(self, grid: Mapping[str, jax.Array], encoded: Sequence[tuple]) -> int:
        """Returns the first candidate whose likelihood is not clearly below the best one's."""
        features, labels, weights, _ = zip(*encoded, strict=True)
        losses, real = to_host(
            (
                self._programs.losses(self._state, self._cache, grid, features, labels, weights),
                weights,
            )
        )
        is_real = np.concatenate(real) > 0
        return first_of_the_best(losses[:, is_real]) if is_real.any() else 0

    def _batches(self, split: Split, name: str) -> Iterator[Batch]:
        size = batch_size_for(self._mesh, self._batch_size, len(split))
        share = process_share()
        with tqdm(
            total=len(range(len(split))[share.of(len(split))]),
            desc=name,
            unit="image",
            mininterval=1.0,
            delay=1.0,  # the folds of quick methods would fill the screen
            disable=not is_writer(),
        ) as progress:
            for batch in self._inputs.evaluation(split, size):
                yield batch
                progress.update(int((batch.indices != PADDING).sum()))

    def _on_devices(self, choices: Mapping[str, Any]) -> dict[str, jax.Array]:
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in choices.items()}
        return replicate(self._mesh, arrays)


def readable_rows(weights: jax.Array, columns: tuple) -> tuple:
    """Returns all processes' rows with a weight above 0, on the host; a column may be None."""
    # Compared on the host, as on the device the comparison would wait for the next batch, which is
    # already being computed there.
    weights, rows = to_host((weights, columns))
    readable = weights > 0
    return jax.tree.map(lambda column: column[readable], rows)


def in_order_of_last(batches: list[tuple]) -> tuple:
    """Returns the columns of all batches, sorted by the last column.

    Sorting is needed because each process reads a different part of the split.
    """
    columns = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    order = np.argsort(columns[-1])
    return jax.tree.map(lambda column: column[order], columns)
