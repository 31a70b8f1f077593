"""Groups runs by benchmark and backbone, method and settings, shots and seed."""

import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fgvpl_jax.displays.labels import FG_VPL, ZERO_SHOT, benchmark_label, method_label, shots_order
from fgvpl_jax.reports.records import RunRecord, Variant, by_panel, variant_label, zero_shot_records

Row = tuple[str, Variant]  # method, settings


class Spread(NamedTuple):
    """Mean and spread of a number over several seeds.

    Attributes:
        mean: Mean over the seeds.
        deviation: Sample standard deviation (divisor n - 1); None for a single seed.
        seeds: Number of seeds.
    """

    mean: float
    deviation: float | None
    seeds: int


@dataclass
class ResultRow:
    """One method with its settings, on one benchmark or averaged over several.

    Attributes:
        method: Name of the method in the config.
        variant: Settings other than the default.
        accuracies: Accuracies in percent, by shots and seed.
    """

    method: str
    variant: Variant
    accuracies: dict[int | None, dict[int, float]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    @property
    def key(self) -> Row:
        """Method and settings, by which rows are identified."""
        return self.method, self.variant

    @property
    def label(self) -> str:
        """Name of the row in a table."""
        settings = variant_label(self.variant)
        return method_label(self.method) + (f" ({settings})" if settings else "")

    def spread(self, shots: int | None) -> Spread | None:
        """Returns the spread over the seeds; None where there is no run."""
        values = self.accuracies.get(shots)
        return spread(list(values.values())) if values else None


@dataclass(eq=False)  # hashed by identity
class Panel:
    """All runs on one benchmark with one backbone.

    Attributes:
        benchmark: Benchmark in the config; for an average, its heading.
        backbone: Label of the backbone.
        shots: Shots that any row has, in order.
        rows: Rows in the paper's order, without zero-shot CLIP.
        zero_shot: Accuracy of zero-shot CLIP in percent, which depends on neither shots nor seed.
        records: The runs; for an average, those of all its benchmarks.
        averaged: Benchmarks that an average is over; empty for a single benchmark.
    """

    benchmark: str
    backbone: str
    shots: list[int | None]
    rows: list[ResultRow]
    zero_shot: float
    records: Sequence[RunRecord] = ()
    averaged: frozenset[str] = frozenset()

    def row(self, key: Row) -> ResultRow | None:
        """Returns the row of a method with its settings; None where it was not run."""
        return next((row for row in self.rows if row.key == key), None)

    @property
    def most_shots(self) -> int | None:
        """Shots of the last column."""
        return self.shots[-1]

    @property
    def shown_row(self) -> Row:
        """Row whose errors are shown: FG-VPL, or the most accurate where it was not run."""
        if self.row((FG_VPL, ())) is not None:
            return FG_VPL, ()
        at_most = [
            (found.mean, row.key) for row in self.rows if (found := row.spread(self.most_shots))
        ]
        return max(at_most, key=lambda pair: pair[0])[1]

    @property
    def title(self) -> str:
        """Heading of the panel."""
        return f"{benchmark_label(self.benchmark)}, {self.backbone}"

    def file_stem(self, kind: str) -> str:
        """Returns the name, without ending, of the panel's files of one kind."""
        return f"{kind}_{self.benchmark}_{self.backbone}".replace(os.sep, "-")

    def seconds(self, key: Row, shots: int | None) -> Spread | None:
        """Returns the spread of a row's training seconds over the seeds; None without a run."""
        found = [r.results.train_seconds for r in self.records if (r.row, r.shots) == (key, shots)]
        return spread(found) if found else None


def rows_of(panels: Sequence[Panel]) -> list[Row]:
    """Returns the methods and settings that any of the panels has."""
    return list(dict.fromkeys(row.key for panel in panels for row in panel.rows))


def drawn_rows(panels: Sequence[Panel]) -> list[Row]:
    """Returns each method's row at its defaults or, where it has no such row, its other rows."""
    keys = rows_of(panels)
    return [key for key in keys if not key[1] or (key[0], ()) not in keys]


def spread(values: Sequence[float]) -> Spread:
    """Returns mean and deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def panels_of(records: Sequence[RunRecord]) -> list[Panel]:
    """Groups runs by benchmark and backbone, then by method and settings.

    Every run measures zero-shot CLIP on the same images, so runs of the method `zero_shot` add
    nothing.
    """
    panels = []
    for (benchmark, backbone), members in by_panel(records).items():
        rows: dict[tuple[str, Variant], ResultRow] = {}
        for record in members:
            if record.method != ZERO_SHOT:
                row = rows.setdefault(record.row, ResultRow(*record.row))
                row.accuracies[record.shots][record.seed] = record.accuracy
        shots = sorted({n for row in rows.values() for n in row.accuracies}, key=shots_order)
        zero_shot = statistics.fmean(
            100 * r.results.zero_shot_accuracy for r in zero_shot_records(members)
        )
        if shots:
            kept = list(rows.values())
            panels.append(Panel(benchmark, backbone, shots, kept, zero_shot, members))
    return panels


def averages_of(panels: Sequence[Panel]) -> list[Panel]:
    """Returns the average over the benchmarks of each backbone that has several.

    A row has a value only where it has one for the same seeds on every benchmark: an average over
    only some of them would compare methods on different data.
    """
    averages = []
    for backbone in dict.fromkeys(panel.backbone for panel in panels):
        members = [panel for panel in panels if panel.backbone == backbone]
        if len(members) < 2:
            continue
        by_row = [{row.key: row for row in panel.rows} for panel in members]
        rows = []
        for key in dict.fromkeys(key for found in by_row for key in found):
            if not all(key in found for found in by_row):
                continue
            row = ResultRow(*key)
            for n in by_row[0][key].accuracies:
                columns = [found[key].accuracies.get(n, {}) for found in by_row]
                if columns[0] and all(c.keys() == columns[0].keys() for c in columns):
                    row.accuracies[n] = {
                        seed: statistics.fmean(column[seed] for column in columns)
                        for seed in columns[0]
                    }
            if row.accuracies:
                rows.append(row)
        shots = sorted({n for row in rows for n in row.accuracies}, key=shots_order)
        if rows:
            benchmark = f"Average over {len(members)} benchmarks"
            zero_shot = statistics.fmean(panel.zero_shot for panel in members)
            records = [record for panel in members for record in panel.records]
            averaged = frozenset(panel.benchmark for panel in members)
            averages.append(Panel(benchmark, backbone, shots, rows, zero_shot, records, averaged))
    return averages
