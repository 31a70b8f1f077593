"""Builds the sections of the report from the runs; `document` writes them."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from fgvpl_jax.displays.figures import confusion_figure
from fgvpl_jax.displays.labels import FG_VPL, benchmark_label, shots_label
from fgvpl_jax.evaluation import SavedPredictions
from fgvpl_jax.reports import plots, tables
from fgvpl_jax.reports.calibration_section import calibration_section
from fgvpl_jax.reports.csv_files import CsvFile
from fgvpl_jax.reports.document import Section, figure_picture
from fgvpl_jax.reports.estimates_section import estimates_section
from fgvpl_jax.reports.example_pictures import draw_examples
from fgvpl_jax.reports.learning_section import learning_section
from fgvpl_jax.reports.panels import Panel, ResultRow, Row
from fgvpl_jax.reports.per_class import (
    PredictionsByRun,
    class_accuracies,
    confusion_matrix,
    predictions_of_row,
    worst_confusions,
)
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.reports.tables import Table
from fgvpl_jax.reports.time_section import time_section
from fgvpl_jax.reports.verdicts import Verdict

MOST_CLASSES_DRAWN = 40
MOST_CLASSES_LISTED = 50
MOST_CONFUSIONS = 10


def saved_predictions_of(panels: Sequence[Panel]) -> dict[RunRecord, SavedPredictions]:
    """Returns the predictions of every run that saved them."""
    return {
        record: saved
        for panel in panels
        for record in panel.records
        if (saved := record.saved_predictions()) is not None
    }


def report_sections(
    panels: Sequence[Panel],
    averages: Sequence[Panel],
    unsplit: Sequence[Panel],
    predictions: PredictionsByRun,
    verdicts: Mapping[Panel, Sequence[Verdict]],
    left_out: Sequence[str],
) -> list[Section]:
    """Returns all sections of the report.

    Args:
        panels: Runs of each benchmark and backbone.
        averages: Averages over the benchmarks of each backbone that has several.
        unsplit: Runs without a test split, by photos and backbone.
        predictions: Predictions of every run that saved them.
        verdicts: Comparisons of each panel's methods.
        left_out: A line for each run that was found but is not in the report.
    """
    sections = []
    if panels:
        sections = [
            accuracy_section(panels, averages),
            gains_section(panels),
            time_section(panels),
        ]
    sections += estimates_section(unsplit)
    sections += learning_section([*panels, *unsplit])
    settings = [table for panel in panels for table in tables.setting_tables(panel)]
    if settings:
        sections.append(Section("Settings", tables=settings))
    if panels:
        sections.append(significance_section(verdicts))
    for panel in panels:
        sections += [
            classes_section(panel, predictions),
            calibration_section(panel, predictions),
            examples_section(panel, predictions),
        ]
    if left_out:
        sections.append(Section("Left out", lines=list(left_out), is_folded=True))
    return sections


def accuracy_section(panels: Sequence[Panel], averages: Sequence[Panel]) -> Section:
    """Returns Tables 2 and 3 and Figure 4."""
    section = Section("Accuracy", tables=[tables.shots_table(panel) for panel in panels])
    for panel in averages:
        section.tables.append(tables.average_table(panel))
    for benchmark in dict.fromkeys(panel.benchmark for panel in panels):
        found = [panel for panel in panels if panel.benchmark == benchmark]
        table = tables.backbone_table(found)
        if table is not None:
            section.tables.append(table)
    for backbone in dict.fromkeys(panel.backbone for panel in panels):
        found = [panel for panel in (*panels, *averages) if panel.backbone == backbone]
        caption = (
            f"Accuracy against shots, {backbone}; error bars are the standard deviation over "
            "seeds, the dashed line is zero-shot CLIP."
        )
        figure = plots.accuracy_figure(found)
        section.pictures.append(figure_picture(figure, f"accuracy_{backbone}", caption))
    return section


def gains_section(panels: Sequence[Panel]) -> Section:
    """Returns Figure 3 and its numbers."""
    section = Section("Points above zero-shot CLIP", tables=[tables.gains_table(panels)])
    for backbone in dict.fromkeys(panel.backbone for panel in panels):
        found = [panel for panel in panels if panel.backbone == backbone]
        for name, figure in (
            ("gains_by_benchmark", plots.gains_by_benchmark_figure(found)),
            ("gains_by_method", plots.gains_by_method_figure(found)),
        ):
            if figure is not None:
                caption = f"Points above zero-shot CLIP, {backbone}."
                section.pictures.append(figure_picture(figure, f"{name}_{backbone}", caption))
    return section


def significance_section(verdicts: Mapping[Panel, Sequence[Verdict]]) -> Section:
    """Returns the comparison of each method with its best rival."""
    section = Section(
        "Is the difference real?",
        lines=[
            "Each method compared with the best of the others, on the same draws and test images. "
            "The interval is a 95% bootstrap over test images; p is McNemar's exact test in the "
            "seed where it is largest. Seeds ahead is the number of draws in which the method has "
            "the higher accuracy. A difference counts as significant if the interval excludes 0 "
            "and the two methods differ the same way in every draw, with p < 0.05 in each. Nothing "
            "is corrected for the number of comparisons."
        ],
    )
    for panel, found in verdicts.items():
        if not found:
            section.lines.append(
                f"{panel.title}: nothing to compare; a comparison needs two methods whose runs "
                "have predictions.npz, at the same shots and seeds."
            )
            continue
        columns = ["trained on", "method", "best rival", "difference", "95% interval"]
        rows = [
            [
                *(shots_label(v.shots), v.row, v.rival, f"{v.comparison.difference:+.2f}"),
                f"{v.comparison.low:+.2f} to {v.comparison.high:+.2f}",
                f"{v.comparison.seeds_ahead} of {v.comparison.seeds}",
                "< 0.001" if v.comparison.p_value < 1e-3 else f"{v.comparison.p_value:.3f}",
                "yes" if v.comparison.is_significant else "no",
            ]
            for v in found
        ]
        columns += ["seeds ahead", "p", "significant"]
        section.tables.append(Table(panel.title, columns, rows))
    return section


def classes_section(panel: Panel, predictions: PredictionsByRun) -> Section:
    """Returns the accuracy by class and the most frequent confusions."""
    section = Section(f"Classes of {panel.title}", is_folded=True)
    confusions = {
        row.key: confusion_matrix(found)
        for row in panel.rows
        if (found := predictions_of_row(panel, row.key, predictions))
    }
    if not confusions:
        section.lines.append("No run has predictions.npz.")
        return section
    key = panel.shown_row if panel.shown_row in confusions else next(iter(confusions))
    saved = predictions_of_row(panel, key, predictions)[0]
    names = [str(name) for name in saved.class_names]
    add_class_accuracies(section, panel, confusions, key, names)
    add_confusions(section, panel, confusions[key], key, names)
    return section


def add_class_accuracies(
    section: Section,
    panel: Panel,
    confusions: Mapping[Row, Int[np.ndarray, "k k"]],
    key: Row,
    names: Sequence[str],
) -> None:
    """Adds the accuracy of each class with each method, classes with the lowest first.

    Args:
        section: Section to add to.
        panel: Runs of one benchmark and backbone.
        confusions: Confusion matrix of each row.
        key: Row whose accuracies the classes are sorted by.
        names: Class names in label order.
    """
    accuracies = {other: 100 * class_accuracies(c) for other, c in confusions.items()}
    order = np.argsort(accuracies[key], kind="stable")
    rows = [[names[c], *(f"{column[c]:.1f}" for column in accuracies.values())] for c in order]
    columns = ["class", *(ResultRow(*other).label for other in confusions)]
    csv_file = CsvFile(f"{panel.file_stem('per_class')}.csv", columns, rows)
    section.csv_files.append(csv_file)
    section.tables.append(
        Table(
            f"Accuracy by class in %, {shots_label(panel.most_shots)}, mean over seeds",
            columns,
            rows[:MOST_CLASSES_LISTED],
            [f"The {MOST_CLASSES_LISTED} lowest of {len(rows)}; all are in {csv_file.name}."]
            * (len(rows) > MOST_CLASSES_LISTED),
        )
    )


def add_confusions(
    section: Section,
    panel: Panel,
    confusion: Int[np.ndarray, "k k"],
    key: Row,
    names: Sequence[str],
) -> None:
    """Adds the most frequent confusions of one row and, for few classes, a figure of all.

    Args:
        section: Section to add to.
        panel: Runs of one benchmark and backbone.
        confusion: Confusion matrix of the row.
        key: Row that is shown.
        names: Class names in label order.
    """
    label, shots = ResultRow(*key).label, shots_label(panel.most_shots)
    stem = panel.file_stem("confusion")
    section.csv_files.append(
        CsvFile(
            f"{stem}.csv",
            [f"true class ({label}, {shots})", *names],
            [[name, *counts] for name, counts in zip(names, confusion, strict=True)],
        )
    )
    section.tables.append(
        Table(
            f"Most frequent confusions of {label}, {shots}, all seeds",
            ["true class", "predicted class", "images", "% of the class"],
            [
                [names[true], names[predicted], str(count), f"{100 * share:.1f}"]
                for true, predicted, count, share in worst_confusions(confusion, MOST_CONFUSIONS)
            ],
        )
    )
    if len(names) <= MOST_CLASSES_DRAWN:
        title = f"{label}, {shots}"
        section.pictures.append(
            figure_picture(
                confusion_figure(confusion, names, title),
                stem,
                f"Confusion matrix of {title}: % of each true class, all seeds.",
            )
        )


def examples_section(panel: Panel, predictions: PredictionsByRun) -> Section:
    """Returns pictures of right and wrong predictions of FG-VPL's first seed."""
    section = Section(
        f"Example predictions on {benchmark_label(panel.benchmark)}, {panel.backbone}"
    )
    found = [
        record
        for record in panel.records
        if record.method == FG_VPL and record.shots == panel.most_shots
    ]
    found.sort(key=lambda r: (bool(r.variant), not (r.folder / "checkpoints").is_dir()))
    if not found or found[0] not in predictions:
        section.lines.append("No pictures: no run of FG-VPL has predictions.npz.")
        return section
    pictures, line = draw_examples(found[0], predictions[found[0]])
    section.pictures += pictures
    section.lines.append(line)
    return section
