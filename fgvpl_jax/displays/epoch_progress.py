"""How far a training is: a display that renews itself on a terminal, plain lines elsewhere."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from fgvpl_jax.displays.live_table import duration

PLAIN_SECONDS = 30.0  # between two plain lines
RECENT = 20  # epochs whose seconds tell what is left

EpochLine = Mapping[str, float | int]


class EpochWords:
    """What is said of an epoch.

    Args:
        num_epochs: Of the whole training.
        device_memory: Bytes in use and in all; None where the device does not tell, as the CPU.
    """

    def __init__(
        self, num_epochs: int, device_memory: Callable[[], tuple[int, int] | None] | None = None
    ):
        self._num_epochs = num_epochs
        self._device_memory = device_memory or memory_of_fullest_device
        self._seconds: list[float] = []

    def of(self, line: EpochLine) -> str:
        """Loss, accuracy, speed, time left and memory.

        Args:
            line: Of `metrics.jsonl`.
        """
        # The first epoch of a process compiles; the later ones do not take as long.
        if line["epoch"] < self._num_epochs:
            self._seconds = [*self._seconds, float(line["seconds"])][-RECENT:]
        later = self._seconds[1:] or self._seconds or [0.0]
        left = (self._num_epochs - line["epoch"]) * statistics.median(later)
        speed = float(line["images_per_second"])
        words = [
            f"loss {line['loss']:.4f}",
            f"accuracy {line['accuracy']:.1%}",
            f"{speed:,.0f} images/s" if speed >= 10 else f"{speed:.1f} images/s",
            f"{duration(left)} left",
        ]
        memory = self._device_memory()
        if memory is not None:
            words.append(f"{memory[0] / 1e9:.1f} of {memory[1] / 1e9:.1f} GB")
        return ", ".join(words)


def memory_of_fullest_device() -> tuple[int, int] | None:
    """Bytes in use and in all of this process's fullest device; None where none tells."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    known = [
        (one["bytes_in_use"], one["bytes_limit"])
        for one in stats
        if "bytes_in_use" in one and one.get("bytes_limit")
    ]
    return max(known, key=lambda pair: pair[0] / pair[1], default=None)


@contextmanager
def showing_epochs(
    num_epochs: int, console: Console | None = None
) -> Iterator[Callable[[EpochLine], None]]:
    """Shows a training's progress while the block runs; yields what is to be told each epoch.

    Args:
        num_epochs: Of the whole training.
        console: Standard error by default.
    """
    console = console or Console(stderr=True, highlight=False, markup=False)
    words = EpochWords(num_epochs)
    if not console.is_terminal or not num_epochs:
        told_last = -PLAIN_SECONDS

        def print_line(line: EpochLine) -> None:
            nonlocal told_last
            said, now = words.of(line), time.monotonic()
            if now - told_last >= PLAIN_SECONDS or line["epoch"] == num_epochs:
                told_last = now
                console.print(f"epoch {line['epoch']} of {num_epochs}: {said}", soft_wrap=True)

        yield print_line
        return
    columns = (
        TextColumn("epoch {task.completed:.0f} of {task.total:.0f}"),
        BarColumn(bar_width=20),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("compiling", total=num_epochs)

        def renew(line: EpochLine) -> None:
            progress.update(task, completed=line["epoch"], description=words.of(line))

        yield renew
