"""Builds the section about the runs whose method was chosen by "auto"."""

from collections.abc import Sequence

from fgvpl_jax.displays.labels import benchmark_label, shots_label
from fgvpl_jax.reports.document import Section
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.reports.tables import Table
from fgvpl_jax.runs.summary import TRIED_COLUMNS, best_first, tried_cells


def auto_sections(records: Sequence[RunRecord]) -> list[Section]:
    """Returns one section with a table for each run with the method "auto"; none without any."""
    tables = [auto_table(record) for record in records if record.results.tried is not None]
    if not tables:
        return []
    lines = [
        "Methods are compared by their likelihood on held-out photos. The estimate is nested: the "
        "choice is repeated without each fold. Test images are read after the choice."
    ]
    return [Section("What auto tried", lines, tables)]


def auto_table(record: RunRecord) -> Table:
    """Returns the methods that one run tried, best first, and the reason for its choice."""
    results = record.results
    title = f"{benchmark_label(record.benchmark)}, {shots_label(record.shots)}, seed {record.seed}"
    notes = [f"Chosen: {results.reason}."]
    if results.cv_accuracy is not None and results.cv_interval is not None:
        low, high = (100 * end for end in results.cv_interval)
        notes.append(
            f"Estimate {100 * results.cv_accuracy:.2f}% (95% interval {low:.1f} to {high:.1f})"
            + ("." if results.test_accuracy is None else f", test accuracy {record.accuracy:.2f}%.")
        )
    rows = [tried_cells(one) for one in best_first(results.tried or ())]
    return Table(title, TRIED_COLUMNS, rows, notes)
