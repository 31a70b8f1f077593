"""Sources of the steps of an epoch: batches from the host, or photos on the devices."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from fgvpl_jax.data import Split
from fgvpl_jax.training.inputs import Inputs
from fgvpl_jax.training.mesh import BatchLayout, replicate, split_batch
from fgvpl_jax.training.processes import slowest
from fgvpl_jax.training.resident import EpochDraw, ResidentPhotos, draw_epoch
from fgvpl_jax.training.train_step import (
    ResidentTrainStep,
    StepBatch,
    StepMetrics,
    TrainStep,
)

# Time that the device works before the host checks whether to stop.
SPAN_SECONDS = 2.0


class Pace:
    """Number of steps that take `SPAN_SECONDS`: measured, and the same in all processes.

    Attributes:
        num_steps: Number of steps in the next span; 1 at first.
    """

    def __init__(self) -> None:
        self.num_steps = 1

    def update(self, num_steps: int, seconds: float) -> None:
        """Sets `num_steps` from the last span; every process must call this method.

        The number at most doubles: a batch that was ready says little about batches that must
        still be decoded.
        """
        seconds_each = slowest(seconds) / num_steps
        wanted = int(SPAN_SECONDS / max(seconds_each, 1e-6))
        self.num_steps = max(1, min(wanted, 2 * self.num_steps))


class StepCall(NamedTuple):
    """One call of a compiled program: the steps of an epoch from `first` to `last` - 1.

    Attributes:
        arguments: Arguments of the program after state, frozen variables, cache and choices.
        first: Number of the first step.
        last: Number of the step after the last one.
    """

    arguments: tuple[Any, ...]
    first: int
    last: int


@runtime_checkable
class BatchSource(Protocol):
    """Supplies the steps of every epoch.

    Attributes:
        program: Compiled program that does one call's steps.
    """

    program: Callable[..., Any]

    def epoch(self, epoch: int, first_step: int, pace: Pace) -> Iterator[StepCall]:
        """Returns the calls of an epoch from step `first_step` on; both numbers start at 0.

        Work that takes longer than a step is done before this method returns. A call has at most
        as many steps as `pace` says when the call is asked for.
        """

    def step_metrics(self, first: int, last: int, metrics: StepMetrics) -> list[StepMetrics]:
        """Returns the metrics of steps `first` to `last` - 1 from the program's, fetched."""


class HostBatches:
    """Batches that the host decodes; each is sent while the step before it runs.

    Args:
        program: Train step, see `make_train_step`.
        inputs: Supplies the batches.
        support: The few-shot images.
        batch_size: Number of images in a step.
        layout: Layout of a batch on the devices.
        mesh: Devices.
    """

    def __init__(
        self,
        program: TrainStep,
        inputs: Inputs,
        support: Split,
        batch_size: int,
        layout: BatchLayout,
        mesh: Mesh,
    ):
        self.program: Callable[..., Any] = program
        self._inputs = inputs
        self._support = support
        self._batch_size = batch_size
        self._layout = layout
        self._mesh = mesh

    def epoch(self, epoch: int, first_step: int, pace: Pace) -> Iterator[StepCall]:
        """Returns one call per step; see `BatchSource.epoch`."""
        batches = self._inputs.epoch(
            self._support,
            self._batch_size,
            epoch,
            first_batch=first_step,
            num_rows=self._layout.num_rows,
        )
        rows = (StepBatch(b.inputs, b.labels, b.weights, b.indices) for b in batches)
        return self._calls(rows, first_step)

    def _calls(self, batches: Iterable[StepBatch], first_step: int) -> Iterator[StepCall]:
        for step, batch in enumerate(batches, start=first_step):
            yield StepCall((split_batch(self._mesh, batch),), step, step + 1)

    def step_metrics(self, first: int, last: int, metrics: StepMetrics) -> list[StepMetrics]:
        """Returns the metrics of the only step; see `BatchSource.step_metrics`."""
        return [metrics]


class ResidentBatches:
    """Crops of photos that stay on the devices; the host sends the random draw of each epoch.

    Args:
        program: Train steps, see `make_resident_train_step`.
        photos: The few-shot images.
        labels: Their classes.
        batch_size: Number of images in a step.
        layout: Layout of a batch on the devices.
        seed: Seed of the run.
        mesh: Devices.
    """

    def __init__(
        self,
        program: ResidentTrainStep,
        photos: ResidentPhotos,
        labels: Int[np.ndarray, "s"],
        batch_size: int,
        layout: BatchLayout,
        seed: int,
        mesh: Mesh,
    ):
        self.program: Callable[..., Any] = program
        self._canvases = replicate(mesh, photos.canvases)
        self._sizes = photos.sizes
        self._labels = labels
        self._batch_size = batch_size
        self._num_rows = layout.num_rows
        self._seed = seed
        self._mesh = mesh

    def epoch(self, epoch: int, first_step: int, pace: Pace) -> Iterator[StepCall]:
        """Returns calls of as many steps as `pace` says; see `BatchSource.epoch`."""
        drawn = draw_epoch(
            self._sizes,
            self._labels,
            self._batch_size,
            seed=self._seed,
            epoch=epoch,
            num_rows=self._num_rows,
        )
        return self._calls(replicate(self._mesh, drawn), len(drawn.labels), first_step, pace)

    def _calls(
        self, draw: EpochDraw, num_steps: int, first_step: int, pace: Pace
    ) -> Iterator[StepCall]:
        first = first_step
        while first < num_steps:
            last = min(first + pace.num_steps, num_steps)
            bounds = replicate(self._mesh, (np.int32(first), np.int32(last)))
            yield StepCall((self._canvases, draw, *bounds), first, last)
            first = last

    def step_metrics(self, first: int, last: int, metrics: StepMetrics) -> list[StepMetrics]:
        """Returns rows of metrics that are arrays over all steps of the epoch."""
        columns = [column[first:last] for column in metrics]
        return [StepMetrics(*row) for row in zip(*columns, strict=True)]
