"""Supplies the few-shot images as whole arrays, and initialises models with them."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Int

from fgvpl_jax.data import Batch, Split
from fgvpl_jax.methods import Method
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.processes import gather_rows
from fgvpl_jax.training.train_step import split_model


class Gathered(NamedTuple):
    """The readable images of a split, in its order.

    Attributes:
        inputs: Input of each image, whichever the method reads.
        labels: Class of each image.
        places: Position of each image in the split.
    """

    inputs: np.ndarray
    labels: Int[np.ndarray, "n"]
    places: Int[np.ndarray, "n"]


def gather(batches: Iterator[Batch]) -> Gathered:
    """Returns the readable images of all processes, each of which must call this function."""
    parts = []
    for batch in batches:
        real = batch.weights > 0
        parts.append((batch.inputs[real], batch.labels[real], batch.indices[real]))
    found = Gathered(*(gather_rows(np.concatenate(part)) for part in zip(*parts, strict=True)))
    order = np.argsort(found.places)
    return Gathered(*(column[order] for column in found))


class FewShotInputs:
    """Supplies the few-shot images as whole arrays, for computations before training.

    Every one of several processes must call the same methods in the same order.

    Attributes:
        labels: Classes of the support images.
        seconds: Time that reading, decoding and encoding took so far.
    """

    def __init__(self, inputs: Inputs, support: Split, validation: Split | None, batch_size: int):
        self.labels = support.labels
        self.seconds = 0.0
        self._inputs = inputs
        self._support = support
        self._validation = validation
        self._batch_size = batch_size

    def augmented(self, epoch: int) -> np.ndarray:
        """Returns inputs of the support images as augmented in epoch `epoch`, from 0."""
        return self._gather(self._inputs.epoch, self._support, epoch=epoch).inputs

    def plain(self) -> np.ndarray:
        """Returns inputs of the support images under the evaluation transform."""
        return self._gather(self._inputs.evaluation, self._support, strict=True).inputs

    def validation(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns inputs and labels of the readable validation images; None if there are none."""
        if self._validation is None:
            return None
        found = self._gather(self._inputs.evaluation, self._validation)
        return (found.inputs, found.labels) if len(found.labels) else None

    def _gather(
        self, batches_of: Callable[..., Iterator[Batch]], split: Split, **options: Any
    ) -> Gathered:
        started = time.monotonic()  # some inputs encode before they return the first batch
        gathered = gather(batches_of(split, self._batch_size, **options))
        self.seconds += time.monotonic() - started
        return gathered


def initialise(
    model: Method, inputs: Inputs, support: Split, validation: Split | None, batch_size: int
) -> float:
    """Sets a model's parameters from the few-shot images.

    Every process gets those that process 0 computed: other machines may round differently.

    Args:
        model: Model to initialise.
        inputs: Supplies the images.
        support: The support images.
        validation: The validation images; None without any.
        batch_size: Number of images that are read at once.
    Returns:
        Seconds that this took, without the time of reading, decoding and encoding images.
    """
    few_shot = FewShotInputs(inputs, support, validation, batch_size)
    started = time.monotonic()
    model.initialise(few_shot)
    jax.block_until_ready(nnx.state(model))
    seconds = time.monotonic() - started - few_shot.seconds
    if jax.process_count() > 1:
        nnx.update(model, multihost_utils.broadcast_one_to_all(split_model(model)[1]))
    return seconds
