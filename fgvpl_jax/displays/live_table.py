"""What a sweep has done so far, as lines or as a table that renews itself."""

import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fgvpl_jax.displays.labels import method_label, shots_label

REFRESHES_PER_SECOND = 2


class Status(Enum):
    """Where a cell stands, as this worker sees it."""

    OPEN = "open"
    RUNNING = "running"
    ELSEWHERE = "running elsewhere"
    DONE = "done"
    FAILED = "failed"


@dataclass
class CellProgress:
    """One cell of a sweep; the worker changes what comes after `metrics_file`.

    Attributes:
        name: Its path below the sweep's `cells`.
        row: Benchmark, backbone, method and settings of its own.
        shots: Training images per class; None for all.
        epochs: How many there will be; None where that is up to the method.
        metrics_file: Has a line for every epoch that is done.
        status: Where it stands.
        accuracy: On the test split, when it is done; None where there is no such split.
        seconds: What it took.
        problem: Why it failed.
    """

    name: str
    row: tuple[str, str, str, str]
    shots: int | None
    epochs: int | None
    metrics_file: Path
    status: Status = Status.OPEN
    accuracy: float | None = None
    seconds: float | None = None
    problem: str | None = None

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to do."""
        return self.status in (Status.DONE, Status.FAILED)


def counts_line(cells: Sequence[CellProgress]) -> str:
    """How many cells stand where, and what is left."""
    number = {status: sum(cell.status is status for cell in cells) for status in Status}
    running = number[Status.RUNNING] + number[Status.ELSEWHERE]
    line = f"{number[Status.DONE]} of {len(cells)} done, {running} running"
    if number[Status.FAILED]:
        line += f", {number[Status.FAILED]} failed"
    left = seconds_left(cells)
    return f"{line}; about {duration(left)} left" if left else line


def seconds_left(cells: Sequence[CellProgress]) -> float | None:
    """What the unsettled cells will take, as long as those most like them took.

    Like them is: the same row and shots; else the same row; else any. None before the first is
    done. Cells that run side by side share what is left.
    """
    kinds: tuple[Callable[[CellProgress], Hashable], ...] = (
        lambda cell: (cell.row, cell.shots),
        lambda cell: cell.row,
        lambda cell: None,
    )
    taken: dict[Hashable, list[float]] = defaultdict(list)
    for cell in cells:
        if cell.seconds is not None:
            for kind in kinds:
                taken[kind(cell)].append(cell.seconds)
    if not taken:
        return None
    total = sum(
        next(statistics.fmean(taken[kind(cell)]) for kind in kinds if kind(cell) in taken)
        for cell in cells
        if not cell.is_settled
    )
    workers = sum(cell.status in (Status.RUNNING, Status.ELSEWHERE) for cell in cells)
    return total / max(1, workers)


def duration(seconds: float) -> str:
    """Two units of time at most: 42 s, 3 min, 2 h 5 min, 3 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{round(seconds)} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def live_table(cells: Sequence[CellProgress]) -> Table:
    """Accuracy by row and shots, mean over the seeds that are done."""
    shots = list(dict.fromkeys(cell.shots for cell in cells))
    table = Table(box=None, pad_edge=False, header_style="bold")
    several = [len({cell.row[i] for cell in cells}) > 1 for i in range(4)]
    columns = [i for i in range(4) if several[i] or i == 2]
    for i in columns:
        table.add_column(("benchmark", "backbone", "method", "settings")[i])
    for n in shots:
        table.add_column(shots_label(n), justify="right")
    for row in dict.fromkeys(cell.row for cell in cells):
        labels = [method_label(row[i]) if i == 2 else row[i] for i in columns]
        entries = [
            _entry([cell for cell in cells if cell.row == row and cell.shots == n]) for n in shots
        ]
        table.add_row(*(Text(label) for label in labels), *entries)
    return table


def _entry(cells: Sequence[CellProgress]) -> Text:
    """One place of the table: the mean, and how many seeds it lacks."""
    text = Text()
    accuracies = [cell.accuracy for cell in cells if cell.accuracy is not None]
    if accuracies:
        text.append(f"{100 * statistics.fmean(accuracies):.2f}")
    done = sum(cell.status is Status.DONE for cell in cells)
    if cells and done < len(cells):
        text.append(f" {done}/{len(cells)}", "dim")
    if any(cell.status is Status.RUNNING for cell in cells):
        text.append(" …", "bold")
    if any(cell.status is Status.FAILED for cell in cells):
        text.append(" failed", "red")
    return text


def running_lines(cells: Sequence[CellProgress]) -> list[str]:
    """The cells at work, and how far each is."""
    lines = []
    for cell in cells:
        if cell.status in (Status.RUNNING, Status.ELSEWHERE):
            try:
                done = cell.metrics_file.read_bytes().count(b"\n")
            except OSError:  # no epoch is done yet
                done = 0
            of_all = "" if cell.epochs is None else f" of {cell.epochs}"
            lines.append(f"{cell.status.value}: {cell.name} ({done}{of_all} epochs done)")
    return lines


@contextmanager
def showing(cells: Sequence[CellProgress]) -> Iterator[Callable[[CellProgress], None]]:
    """Shows the cells while the block runs; yields what is to be called when one is settled.

    On a terminal a table renews itself; elsewhere there is one line a cell. What the block prints
    must be kept from the terminal.
    """
    console = Console(file=sys.stdout, highlight=False, markup=False)

    def table_now() -> Group:
        return Group(live_table(cells), *map(Text, (*running_lines(cells), counts_line(cells))))

    def told(cell: CellProgress) -> None:
        if cell.problem is not None:
            line = f"failed: {cell.name}: {cell.problem}"
        elif console.is_terminal or cell.seconds is None:
            return
        else:
            accuracy = "" if cell.accuracy is None else f" {cell.accuracy:.2%}"
            line = f"{cell.name}:{accuracy} ({duration(cell.seconds)}); {counts_line(cells)}"
        console.print(line, soft_wrap=True)

    if console.is_terminal:
        with Live(
            console=console,
            get_renderable=table_now,
            refresh_per_second=REFRESHES_PER_SECOND,
            redirect_stdout=False,
            redirect_stderr=False,
        ):
            yield told
    else:
        yield told
        console.print(table_now())
