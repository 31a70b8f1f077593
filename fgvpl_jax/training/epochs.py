"""An epoch's steps: with photos that lie on the devices, or batches that come from the host."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from fgvpl_jax.data import Split
from fgvpl_jax.recognition import VisualCache
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.mesh import BatchLayout, replicate, split_batch
from fgvpl_jax.training.processes import slowest
from fgvpl_jax.training.resident import ResidentPhotos, draw_epoch
from fgvpl_jax.training.train_step import (
    ResidentTrainStep,
    StepBatch,
    StepMetrics,
    TrainState,
    TrainStep,
)

# How long the device works before the host looks whether it is to stop.
SPAN_SECONDS = 2.0

Choices = Mapping[str, Float[Array | np.ndarray, ""]]
# From state, frozen variables, cache and choices: after every `Pace` of steps the state and their
# metrics, fetched.
StepsOfEpoch = Callable[
    [TrainState, nnx.State, VisualCache | None, Choices],
    Iterator[tuple[TrainState, list[StepMetrics]]],
]


@runtime_checkable
class Steps(Protocol):
    """Where an epoch's steps come from."""

    def epoch(self, epoch: int, first_step: int) -> StepsOfEpoch:
        """The steps of an epoch, both from 0, without those before `first_step`.

        What takes longer than a step is done before this returns.
        """


class Pace:
    """How many steps take `SPAN_SECONDS`, measured, and the same number in all processes.

    Attributes:
        num_steps: At first 1.
    """

    def __init__(self):
        self.num_steps = 1

    def measured(self, num_steps: int, seconds: float) -> None:
        """Sets `num_steps` by what this process last did; every process must call it.

        It doubles at most: a batch that lay ready says little of those that must be decoded.
        """
        seconds_each = slowest(seconds) / num_steps
        wanted = int(SPAN_SECONDS / max(seconds_each, 1e-6))
        self.num_steps = max(1, min(wanted, 2 * self.num_steps))


class HostSteps:
    """Batches that the host makes, each sent while the step before its own is at work.

    Args:
        train_step: See `make_train_step`.
        inputs: Where the batches come from.
        support: The few-shot images.
        batch_size: Images of a step.
        layout: Of a batch on the devices.
        mesh: Devices.
    """

    def __init__(
        self,
        train_step: TrainStep,
        inputs: Inputs,
        support: Split,
        batch_size: int,
        layout: BatchLayout,
        mesh: Mesh,
    ):
        self._train_step = train_step
        self._inputs = inputs
        self._support = support
        self._batch_size = batch_size
        self._layout = layout
        self._mesh = mesh
        self._pace = Pace()

    def epoch(self, epoch: int, first_step: int) -> StepsOfEpoch:
        """See `Steps`."""
        batches = self._inputs.epoch(
            self._support,
            self._batch_size,
            epoch,
            first_batch=first_step,
            num_rows=self._layout.num_rows,
        )

        sent = (
            split_batch(
                self._mesh, StepBatch(batch.inputs, batch.labels, batch.weights, batch.indices)
            )
            for batch in batches
        )

        def run(state, frozen, cache, choices):
            batch = next(sent, None)
            jax.block_until_ready((state, cache))  # what was begun before is not timed
            while batch is not None:
                started = time.monotonic()
                span: list[StepMetrics] = []
                while batch is not None and len(span) < self._pace.num_steps:
                    with jax.transfer_guard("disallow"):
                        state, metrics = self._train_step(state, frozen, cache, choices, batch)
                    jax.block_until_ready(span[-1:])  # so that two batches lie there at most
                    span.append(metrics)
                    batch = next(sent, None)
                span = jax.device_get(span)
                self._pace.measured(len(span), time.monotonic() - started)
                yield state, span

        return run


class ResidentSteps:
    """Photos that lie on the devices: the host sends what it draws, once an epoch.

    Args:
        train_steps: See `make_resident_train_step`.
        photos: The few-shot images.
        labels: Their classes.
        batch_size: Images of a step.
        layout: Of a batch on the devices.
        seed: The run's.
        mesh: Devices.
    """

    def __init__(
        self,
        train_steps: ResidentTrainStep,
        photos: ResidentPhotos,
        labels: np.ndarray,
        batch_size: int,
        layout: BatchLayout,
        seed: int,
        mesh: Mesh,
    ):
        self._train_steps = train_steps
        self._canvases = replicate(mesh, photos.canvases)
        self._sizes = photos.sizes
        self._labels = labels
        self._batch_size = batch_size
        self._num_rows = layout.num_rows
        self._seed = seed
        self._mesh = mesh
        self._pace = Pace()

    def epoch(self, epoch: int, first_step: int) -> StepsOfEpoch:
        """See `Steps`."""
        drawn = draw_epoch(
            self._sizes,
            self._labels,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            num_rows=self._num_rows,
        )
        draw, num_steps = replicate(self._mesh, drawn), len(drawn.labels)

        def run(state, frozen, cache, choices):
            first = first_step
            while first < num_steps:
                last = min(first + self._pace.num_steps, num_steps)
                bounds = replicate(self._mesh, (np.int32(first), np.int32(last)))
                jax.block_until_ready((state, cache))  # what was begun before is not timed
                started = time.monotonic()
                with jax.transfer_guard("disallow"):
                    state, metrics = self._train_steps(
                        state, frozen, cache, choices, self._canvases, draw, *bounds
                    )
                columns = [column[first:last] for column in jax.device_get(metrics)]
                self._pace.measured(last - first, time.monotonic() - started)
                yield state, [StepMetrics(*row) for row in zip(*columns, strict=True)]
                first = last

        return run
