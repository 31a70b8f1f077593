"""Progress of a training run: a live display on a terminal, plain lines elsewhere."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fgvpl_jax.displays.live_table import duration
from fgvpl_jax.training import EpochCallback, EpochMetrics, is_writer

PLAIN_SECONDS = 30.0  # between two plain lines
RECENT = 20  # latest epochs, from which the time left is estimated


class EpochSummary:
    """Describes the epochs of a training run in one line each.

    Args:
        num_epochs: Number of epochs of the whole run.
        device_memory: Returns the bytes in use and in total; None where the device does not report
            them, as on the CPU.
    """

    def __init__(
        self, num_epochs: int, device_memory: Callable[[], tuple[int, int] | None] | None = None
    ):
        self._num_epochs = num_epochs
        self._device_memory = device_memory or memory_of_fullest_device
        self._seconds: list[float] = []

    def describe(self, line: EpochMetrics) -> str:
        """Returns loss, accuracy, speed, time left and memory after an epoch.

        Args:
            line: The epoch's line of `metrics.jsonl`.
        """
        # The last epoch's seconds are not needed: no time is left after it.
        if line["epoch"] < self._num_epochs:
            self._seconds = [*self._seconds, float(line["seconds"])][-RECENT:]
        # The first epoch of a process compiles, so it takes longer than the others.
        later = self._seconds[1:] or self._seconds or [0.0]
        left = (self._num_epochs - line["epoch"]) * statistics.median(later)
        speed = float(line["images_per_second"])
        parts = [
            f"loss {line['loss']:.4f}",
            f"accuracy {line['accuracy']:.1%}",
            f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s",
            f"{duration(left)} left",
        ]
        memory = self._device_memory()
        if memory is not None:
            parts.append(f"{memory[0] / 1e9:.1f} of {memory[1] / 1e9:.1f} GB")
        return ", ".join(parts)


def memory_of_fullest_device() -> tuple[int, int] | None:
    """Returns the bytes in use and in total of this process's fullest device, if any reports."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [
        (one["bytes_in_use"], one["bytes_limit"])
        for one in stats
        if "bytes_in_use" in one and one.get("bytes_limit")
    ]
    return max(known, key=lambda pair: pair[0] / pair[1], default=None)


class PlainProgress:
    """Prints a line for an epoch if the last line is older than `PLAIN_SECONDS`.

    Args:
        num_epochs: Number of epochs of the whole run.
        console: Console to print to.
    """

    def __init__(self, num_epochs: int, console: Console):
        self._num_epochs = num_epochs
        self._console = console
        self._summary = EpochSummary(num_epochs)
        self._last_printed = -PLAIN_SECONDS

    def __call__(self, line: EpochMetrics, trainable: nnx.State | None = None) -> None:
        """Shows the epoch, and the last epoch in any case."""
        text, now = self._summary.describe(line), time.monotonic()
        if now - self._last_printed >= PLAIN_SECONDS or line["epoch"] == self._num_epochs:
            self._last_printed = now
            text = f"epoch {line['epoch']} of {self._num_epochs}: {text}"
            self._console.print(text, soft_wrap=True)


@contextmanager
def epoch_progress(num_epochs: int, console: Console | None = None) -> Iterator[EpochCallback]:
    """Shows the progress of a training run while the block runs; only process 0 shows it.

    Args:
        num_epochs: Number of epochs of the whole run.
        console: Console to print to; standard error by default.
    Yields:
        The function to call after each epoch.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal or not num_epochs or not is_writer():
        yield PlainProgress(num_epochs, console)
        return
    columns = (
        TextColumn("epoch {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
    )
    summary = EpochSummary(num_epochs)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=num_epochs)

        def update(line: EpochMetrics, trainable: nnx.State | None = None) -> None:
            progress.update(task, completed=line["epoch"], description=summary.describe(line))

        yield update
