"""Builds the report's section about runs without a test split, such as those on own photos."""

import math
from collections.abc import Sequence

from fgvpl_jax.displays.labels import method_label, shots_order
from fgvpl_jax.reports.document import Section
from fgvpl_jax.reports.panels import Panel
from fgvpl_jax.reports.records import RunRecord, by_panel
from fgvpl_jax.reports.tables import Table

COLUMNS = (
    "run",
    "method",
    "seed",
    "photos",
    "accuracy",
    "95% interval",
    "mean over classes",
    "NLL",
    "ECE",
    "zero-shot CLIP",
)


def estimated_panels(records: Sequence[RunRecord]) -> list[Panel]:
    """Groups runs without a test split by photos and backbone; the panels have no rows."""
    return [
        Panel(
            f"{photos} (no test split)",
            backbone,
            sorted({record.shots for record in found}, key=shots_order),
            rows=[],
            zero_shot=math.nan,
            records=found,
        )
        for (photos, backbone), found in by_panel(records).items()
    ]


def estimates_section(panels: Sequence[Panel]) -> list[Section]:
    """Returns the cross-validated scores of each run without a test split; empty without any."""
    if not panels:
        return []
    lines = [
        "These runs have no test split. Each photo was predicted by a model trained on the other "
        "folds, and the classifier itself was then trained on all photos."
    ]
    tables = [Table(panel.title, COLUMNS, list(map(cells, panel.records))) for panel in panels]
    return [Section("Estimated by cross-validation", lines, tables)]


def cells(record: RunRecord) -> list[str]:
    """Returns a run's row of the table."""
    results = record.results
    assert results.cv_interval is not None
    low, high = results.cv_interval
    return [
        "/".join(record.folder.parts[-2:]),
        method_label(record.method),
        f"{record.seed}",
        f"{results.counts.train}",
        f"{results.cv_accuracy:.2%}",
        f"{low:.1%} to {high:.1%}",
        f"{results.cv_mean_class_accuracy:.2%}",
        f"{results.cv_nll:.3f}",
        f"{results.cv_ece:.3f}",
        f"{results.zero_shot_accuracy:.2%}",
    ]
