"""`--mode=report`: tables and figures of all finished runs below some folders."""

from collections.abc import Sequence
from pathlib import Path

from fgvpl_jax.displays.labels import benchmark_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.files import expand_user
from fgvpl_jax.reports import csv_files
from fgvpl_jax.reports.auto_section import auto_sections
from fgvpl_jax.reports.data_page import look_sections
from fgvpl_jax.reports.document import write_document
from fgvpl_jax.reports.estimates_section import estimated_panels
from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.panels import averages_of, panels_of
from fgvpl_jax.reports.sections import report_sections, saved_predictions_of
from fgvpl_jax.reports.verdicts import verdicts_of
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.settings import flatten, plain

REPORT = "report"
# Fields whose default depends on the benchmark: a table that varies them names every value.
BENCHMARKS_OWN = ("epochs", "data.")


def write_report(place: str | Path, folders: Sequence[str | Path]) -> list[str]:
    """Writes `report/` with `report.html`, `report.md`, CSV files and figures.

    Args:
        place: Folder in which the folder `report` is written.
        folders: Folders that hold the runs, at any depth.
    Returns:
        Lines that say which runs were left out and where the report is.
    Raises:
        UserError: If there is no finished run.
    """
    for folder in folders:
        if not expand_user(folder).is_dir():
            raise UserError(f"there is no folder {str(folder)!r}: name folders with finished runs")
    defaults = {
        name: value
        for name, value in flatten(plain(get_config())).items()
        if not name.startswith(BENCHMARKS_OWN)
    }
    records, estimated, left_out = read_runs([expand_user(f) for f in folders], defaults)
    panels = panels_of(records)
    if not panels and not estimated:
        reasons = f" ({left_out[0]})" if left_out else ""
        raise UserError(
            f"no finished run in {', '.join(map(str, folders))}{reasons}"
            if not records
            else "only runs of zero-shot CLIP were found, which every other run measures as well: "
            "add a run of another method to compare"
        )
    averages = averages_of(panels)
    predictions = saved_predictions_of(panels)
    verdicts = {panel: verdicts_of(panel.records, predictions) for panel in panels}
    unsplit = estimated_panels(estimated)
    sections = report_sections(panels, averages, unsplit, predictions, verdicts, left_out)
    sections += auto_sections([*records, *estimated])
    sections += look_sections([expand_user(folder) for folder in folders])
    benchmarks = dict.fromkeys(benchmark_label(panel.benchmark) for panel in [*panels, *unsplit])
    count = len(records) + len(estimated)
    runs = f"{count} run" if count == 1 else f"{count} runs"
    out = expand_user(place).absolute() / REPORT
    out.mkdir(parents=True, exist_ok=True)
    write_document(f"{runs} on {', '.join(benchmarks)}", sections, out)
    csv_files.write_runs(records, out / "runs.csv")
    csv_files.write_accuracies([*panels, *averages], out / "accuracy.csv")
    csv_files.write_verdicts(verdicts, out / "significance.csv")
    lines = [f"left out: {line}" for line in left_out]
    return [*lines, f"{runs}; the report is {out / 'report.html'}"]
