"""Builds the report's section about calibration: what the temperature changes, and reliability."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from fgvpl_jax.displays.labels import shots_label
from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.reports import plots
from fgvpl_jax.reports.csv_files import CsvFile
from fgvpl_jax.reports.document import Section, figure_picture
from fgvpl_jax.reports.panels import Panel, ResultRow, Row
from fgvpl_jax.reports.per_class import PredictionsByRun, predictions_of_row, reliability
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.reports.tables import NOTHING, Table

SCORES = {
    "nll": "Negative log-likelihood (NLL)",
    "ece": "Expected calibration error (ECE, 15 bins)",
}


def calibration_section(panel: Panel, predictions: PredictionsByRun) -> Section:
    """Returns how well the probabilities match the accuracy, before and after the temperature."""
    section = Section(f"Calibration on {panel.title}", is_folded=True)
    columns = [f"{score}{when}" for score in SCORES for when in ("", "_tempered")]
    section.csv_files.append(
        CsvFile(
            f"{panel.file_stem('calibration')}.csv",
            ["method", "shots", "seed", *columns],
            [
                [row.label, r.shots, r.seed, *(x for s in SCORES for x in before_and_after(r, s))]
                for row in panel.rows
                for r in panel.records
                if r.row == row.key
            ],
        )
    )
    for score, name in SCORES.items():
        section.tables.append(
            Table(
                f"{name}, mean over seeds",
                ["method", *map(shots_label, panel.shots)],
                [
                    [row.label, *(change_entry(panel, row.key, n, score) for n in panel.shots)]
                    for row in panel.rows
                ],
                ["Before → after the division by the temperature; one number where none is used."],
            )
        )
    key = panel.shown_row
    saved = predictions_of_row(panel, key, predictions)
    if saved:
        section.pictures.append(
            figure_picture(
                draw_reliability(ResultRow(*key).label, saved),
                panel.file_stem("reliability"),
                f"Reliability at {shots_label(panel.most_shots)}, all seeds; on the dashed line "
                "confidence equals accuracy.",
            )
        )
    return section


def change_entry(panel: Panel, key: Row, shots: int | None, score: str) -> str:
    """Returns the mean score of a row's runs, before and after tempering where they differ."""
    found = [before_and_after(r, score) for r in panel.records if (r.row, r.shots) == (key, shots)]
    if not found:
        return NOTHING
    before, after = (f"{mean:.3f}" for mean in np.mean(found, axis=0))
    return before if before == after else f"{before} → {after}"


def before_and_after(record: RunRecord, score: str) -> tuple[float, float]:
    """Returns a score of a run's test images without and with the temperature."""
    results = record.results
    return getattr(results, f"test_{score}"), getattr(results, f"test_{score}_tempered")


def draw_reliability(label: str, saved: Sequence[SavedPredictions]) -> Figure:
    """Returns the figure of a method's reliability, before and after tempering.

    Args:
        label: Name of the method with its settings.
        saved: Predictions of all its seeds.
    """
    labels = np.concatenate([run.labels for run in saved])
    right = np.concatenate([run.predicted for run in saved]) == labels
    zero_shot_right = np.concatenate([run.zero_shot_predicted for run in saved]) == labels
    zero_shot = np.concatenate([run.zero_shot_confidence for run in saved])
    confidence = np.concatenate([run.confidence for run in saved])
    tempered = np.concatenate([run.confidence_tempered for run in saved])
    return plots.reliability_figure(
        {
            "Zero-shot CLIP": reliability(zero_shot, zero_shot_right),
            label: reliability(confidence, right),
            f"{label}, tempered": reliability(tempered, right),
        }
    )
