"""Progress of a sweep, as lines or as a live table."""

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
    """State of a cell, as this worker sees it."""

    OPEN = "open"
    RUNNING = "running"
    ELSEWHERE = "running elsewhere"
    DONE = "done"
    FAILED = "failed"


@dataclass
class CellProgress:
    """Progress of one cell of a sweep; the worker updates the fields after `metrics_file`.

    Attributes:
        name: Path of the cell below the sweep's `cells`.
        row: Benchmark, backbone, method and the cell's own settings.
        shots: Number of training images per class; None for all.
        epochs: Number of epochs; None where the method chooses it.
        metrics_file: File with a line for every finished epoch.
        status: State of the cell.
        accuracy: Accuracy on the test split of a finished cell; None without a test split.
        seconds: Time that the finished cell took.
        problem: Reason why the cell failed.
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
        """Whether the cell has finished or failed."""
        return self.status in (Status.DONE, Status.FAILED)


def counts_line(cells: Sequence[CellProgress]) -> str:
    """Returns the number of cells in each state, and the time left."""
    number = {status: sum(cell.status is status for cell in cells) for status in Status}
    running = number[Status.RUNNING] + number[Status.ELSEWHERE]
    line = f"{number[Status.DONE]} of {len(cells)} done, {running} running"
    if number[Status.FAILED]:
        line += f", {number[Status.FAILED]} failed"
    left = seconds_left(cells)
    return f"{line}; about {duration(left)} left" if left else line


def seconds_left(cells: Sequence[CellProgress]) -> float | None:
    """Estimates the time left from the finished cells that are most like the unsettled ones.

    These are the cells of the same row and shots, else of the same row, else all. Returns None
    before the first cell is done. Cells that run in parallel share the time left.
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
    """Formats a duration in at most two units: 42 s, 3 min, 2 h 5 min, 3 d 4 h."""
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


def accuracy_table(cells: Sequence[CellProgress]) -> Table:
    """Returns a table of accuracies by row and shots, as means over the finished seeds."""
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
    """Returns one entry of the table: the mean, and the finished seeds if some are missing."""
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
    """Returns one line for each running cell, with its finished epochs."""
    lines = []
    for cell in cells:
        if cell.status in (Status.RUNNING, Status.ELSEWHERE):
            try:
                done = cell.metrics_file.read_bytes().count(b"\n")
            except OSError:  # no epoch has finished yet
                done = 0
            of_all = "" if cell.epochs is None else f" of {cell.epochs}"
            lines.append(f"{cell.status.value}: {cell.name} ({done}{of_all} epochs done)")
    return lines


@contextmanager
def live_table(cells: Sequence[CellProgress]) -> Iterator[Callable[[CellProgress], None]]:
    """Shows the cells while the block runs.

    A terminal shows a live table, which the block's own output must not disturb; elsewhere each
    cell gets one line.

    Yields:
        The function to call when a cell has finished or failed.
    """
    console = Console(file=sys.stdout, highlight=False, markup=False)

    def table_now() -> Group:
        return Group(accuracy_table(cells), *map(Text, (*running_lines(cells), counts_line(cells))))

    def on_cell(cell: CellProgress) -> None:
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
            yield on_cell
    else:
        yield on_cell
        console.print(table_now())
