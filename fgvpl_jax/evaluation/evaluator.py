"""Runs a trained model over a split: one jitted program from its inputs to logits."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int
from tqdm import tqdm

from fgvpl_jax.data import Split
from fgvpl_jax.errors import UserError
from fgvpl_jax.methods import Choices
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training import (
    Inputs,
    batch_size_for,
    gather_texts,
    is_writer,
    one_behind,
    process_share,
    replicate,
    split_batch,
    to_host,
)


@dataclass(frozen=True)
class Predictions:
    """Logits of the readable images of a split, in the split's order.

    Attributes:
        logits: The trained model's.
        zero_shot_logits: Plain CLIP's, from the same pixels.
        labels: True classes.
        object_masks: Patches of the object, row-major; None where the method has none.
        indices: Places of the images in the split.
        unreadable: "path: reason" of every image that could not be decoded.
    """

    logits: Float[np.ndarray, "N k"]
    zero_shot_logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    object_masks: Bool[np.ndarray, "N n"] | None
    indices: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class Selection:
    """What a validation split says of a method's candidates; perhaps nothing.

    Attributes:
        accuracies: Of each candidate; empty where not one image is readable.
        best: Place of the first of the highest accuracy; 0 where there is none.
        logits: At the best.
        labels: True classes.
        unreadable: "path: reason" of every image that could not be decoded.
    """

    accuracies: Float[np.ndarray, "c"]
    best: int
    logits: Float[np.ndarray, "N k"]
    labels: Int[np.ndarray, "N"]
    unreadable: tuple[str, ...]


class Programs(NamedTuple):
    """What an evaluator runs on the device; the first argument is (trainable, frozen).

    Attributes:
        outputs: From inputs to logits, zero-shot logits and object masks or None.
        features: From inputs to features.
        logits_of: From features to logits.
        hits: From features and arrays of choices to the number of right answers by each.
    """

    outputs: Callable
    features: Callable
    logits_of: Callable
    hits: Callable


@cache
def compile_programs(graphdef: nnx.GraphDef) -> Programs:
    """The programs of one model structure, shared by all evaluators of it."""

    @jax.jit
    def outputs(state, support, choices, inputs):
        model = nnx.merge(graphdef, *state)
        features = model.features(inputs)
        logits = model.logits(features, support, **choices)
        masks = features.object_mask if model.finds_objects else None
        return logits, model.zero_shot_logits(inputs), masks

    @jax.jit
    def features(state, inputs):
        return nnx.merge(graphdef, *state).features(inputs)

    @jax.jit
    def logits_of(state, support, choices, features):
        return nnx.merge(graphdef, *state).logits(features, support, **choices)

    @jax.jit
    def hits(state, support, candidates, features, labels, weights):
        model = nnx.merge(graphdef, *state)

        def of_one(choices):
            guesses = model.logits(features, support, **choices).argmax(axis=1)
            return jnp.sum((guesses == labels) * weights)

        return jax.lax.map(of_one, candidates)

    return Programs(outputs, features, logits_of, hits)


class Evaluator:
    """A model with its final parameters and the cache that belongs to them.

    Args:
        graphdef: Structure of the model.
        trainable: Final parameters.
        frozen: The rest.
        cache: Built with the final parameters; None for a method without one.
        inputs: What the model reads of the images.
        batch_size: Images a step.
        mesh: Devices; the frozen variables and the cache must already be on them.
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
        """Logits of every readable image of a split.

        Args:
            split: Read once, in order.
            choices: See `Method.candidates`.
            name: What the progress line calls the split.
        Raises:
            UserError: If not one image is readable.
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

    def choose(self, split: Split, candidates: Sequence[Choices]) -> Selection:
        """Compares candidates by their accuracy on a validation split.

        The images are encoded once, nothing is retraced, and all candidates are one program.

        Args:
            split: Never the test split.
            candidates: At least one; of equally good ones the first wins.
        """
        grid = self._on_devices({name: [c[name] for c in candidates] for name in candidates[0]})
        hits: list[Any] = []
        encoded: list[tuple] = []
        unreadable: list[str] = []
        for batch in self._batches(split, "validation"):
            unreadable += batch.unreadable
            inputs, *answers = split_batch(
                self._mesh, (batch.inputs, batch.labels, batch.weights, batch.indices)
            )
            features = self._programs.features(self._state, inputs)
            jax.block_until_ready(encoded[-1:])  # so that two batches lie on the devices at most
            encoded.append((features, *answers))
            if len(candidates) > 1:
                hits.append(
                    self._programs.hits(self._state, self._cache, grid, features, *answers[:2])
                )
        right = np.sum(to_host(hits), axis=0) if hits else np.zeros(len(candidates))
        best = int(right.argmax())
        chosen = self._on_devices(candidates[best])
        columns = []
        for features, labels, weights, indices in encoded:
            logits = self._programs.logits_of(self._state, self._cache, chosen, features)
            columns.append(readable_rows(weights, (logits, labels, indices)))
        logits, truth, _ = in_order_of_last(columns)
        if len(candidates) == 1:
            right[0] = (logits.argmax(axis=1) == truth).sum()
        accuracies = right / len(truth) if len(truth) else np.empty(0)
        return Selection(accuracies, best, logits, truth, tuple(gather_texts(unreadable)))

    def _batches(self, split: Split, name: str):
        size = batch_size_for(self._mesh, self._batch_size, len(split))
        share = process_share()
        with tqdm(
            total=len(range(len(split))[share.of(len(split))]),
            desc=name,
            unit="image",
            mininterval=1.0,
            disable=not is_writer(),
        ) as progress:
            for batch in self._inputs.evaluation(split, size):
                yield batch
                progress.update(int((batch.indices >= 0).sum()))

    def _on_devices(self, choices: Any) -> dict[str, jax.Array]:
        arrays = {name: jnp.asarray(value, jnp.float32) for name, value in choices.items()}
        return replicate(self._mesh, arrays)


def readable_rows(weights: jax.Array, columns: tuple) -> tuple:
    """The rows of weight above 0, of all processes, on the host; a column may be None."""
    # Compared on the host: on the device it would wait for the next batch, which is at work there.
    weights, rows = to_host((weights, columns))
    readable = weights > 0
    return jax.tree.map(lambda column: column[readable], rows)


def in_order_of_last(batches: list[tuple]) -> tuple:
    """The columns of all batches, sorted by the last: processes read different parts of a split."""
    columns = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)
    order = np.argsort(columns[-1])
    return jax.tree.map(lambda column: column[order], columns)
