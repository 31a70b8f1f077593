"""Writes the report's numbers for other programs: runs, accuracies, classes, comparisons."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fgvpl_jax.reports.panels import Panel
from fgvpl_jax.reports.records import RunRecord, variant_label
from fgvpl_jax.reports.tables import paper_gain_of, paper_of, paper_zero_shot
from fgvpl_jax.reports.verdicts import Verdict

SCORES = (
    "test_accuracy",
    "test_mean_class_accuracy",
    "test_nll",
    "test_ece",
    "test_nll_tempered",
    "test_ece_tempered",
    "zero_shot_accuracy",
)


@dataclass(frozen=True)
class CsvFile:
    """A table for other programs.

    Attributes:
        name: Name of the file in the report's folder.
        columns: Headings.
        rows: One entry per column; None is an empty field.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


def write_csv(file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Writes rows below a line of headings; None is an empty field."""
    with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(rows)


def write_runs(records: Sequence[RunRecord], file: Path) -> None:
    """Writes one line per run, with its scores as fractions."""
    own = ("benchmark", "backbone", "method", "settings", "shots", "seed", "epochs")
    write_csv(
        file,
        (*own, "validation_accuracy", *SCORES, "folder"),
        (
            (
                *(r.benchmark, r.backbone, r.method, variant_label(r.variant), r.shots, r.seed),
                r.results.epochs,
                max(r.results.validation_accuracy.values(), default=None),
                *(getattr(r.results, name) for name in SCORES),
                r.folder,
            )
            for r in records
        ),
    )


def write_accuracies(panels: Sequence[Panel], file: Path) -> None:
    """Writes one line per row and column of Tables 2 to 5, Figures 3 and 4, and the averages.

    A line has the accuracy in percent and in points above zero-shot CLIP, each with the paper's
    number and the difference.
    """
    columns = ("benchmark", "backbone", "method", "settings", "shots")
    rows: list[Sequence[object]] = []
    for panel in panels:
        where = (panel.benchmark, panel.backbone)
        for shots in panel.shots:
            paper = paper_zero_shot(panel, shots)
            ours = (panel.zero_shot, None, None, paper, _difference(panel.zero_shot, paper))
            rows.append((*where, "zero_shot", "", shots, *ours, None, None, None))
        for row in panel.rows:
            for shots in panel.shots:
                found = row.spread(shots)
                if found is not None:
                    paper, gain = paper_of(panel, row, shots), found.mean - panel.zero_shot
                    paper_gain = paper_gain_of(panel, row, shots)
                    rows.append(
                        (
                            *(*where, row.method, variant_label(row.variant), shots),
                            *(*found, paper, _difference(found.mean, paper)),
                            *(gain, paper_gain, _difference(gain, paper_gain)),
                        )
                    )
    numbers = ("mean", "deviation", "seeds", "paper", "difference")
    gains = ("gain", "paper_gain", "gain_difference")
    write_csv(file, (*columns, *numbers, *gains), rows)


def _difference(ours: float, paper: float | None) -> float | None:
    return None if paper is None else ours - paper


def write_verdicts(verdicts: Mapping[Panel, Sequence[Verdict]], file: Path) -> None:
    """Writes one line per comparison, in points."""
    write_csv(
        file,
        (
            *("benchmark", "backbone", "shots", "method", "rival", "difference", "low", "high"),
            *("seeds", "seeds_ahead", "p_value", "images"),
        ),
        (
            (panel.benchmark, panel.backbone, v.shots, v.row, v.rival, *v.comparison, v.images)
            for panel, found in verdicts.items()
            for v in found
        ),
    )
