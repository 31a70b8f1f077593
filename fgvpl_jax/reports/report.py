"""`--mode=report`: tables and figures of all finished runs below some folders."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fgvpl_jax.displays.figures import confusion_figure, save_figure
from fgvpl_jax.displays.labels import FG_VPL, benchmark_label, shots_label
from fgvpl_jax.errors import UserError
from fgvpl_jax.evaluation import Answers
from fgvpl_jax.reports import csv_files, plots, tables
from fgvpl_jax.reports.answer_pictures import draw_answers
from fgvpl_jax.reports.document import Picture, Section, write_html, write_markdown
from fgvpl_jax.reports.find_runs import read_runs
from fgvpl_jax.reports.panels import Panel, ResultRow, Row, averages_of, panels_of
from fgvpl_jax.reports.per_class import (
    class_accuracies,
    confusion_matrix,
    reliability,
    worst_confusions,
)
from fgvpl_jax.reports.records import RunRecord
from fgvpl_jax.reports.tables import Table
from fgvpl_jax.reports.verdicts import Verdict, verdicts_of
from fgvpl_jax.runs.default_config import get_config
from fgvpl_jax.runs.settings import flatten, plain

REPORT = "report"
MOST_CLASSES_DRAWN = 40
MOST_CLASSES_LISTED = 50
MOST_CONFUSIONS = 10
# Fields whose default is a benchmark's own: a table that varies them names every value.
BENCHMARKS_OWN = ("epochs", "data.")

AnswersOf = dict[RunRecord, Answers]


def write_report(place: str | Path, folders: Sequence[str | Path]) -> list[str]:
    """Writes `report/` with `report.html`, `report.md`, CSV files and figures.

    Args:
        place: Gets the folder `report`.
        folders: Hold the runs, at any depth.
    Returns:
        Lines that say what was found and where it is now.
    Raises:
        UserError: If there is no finished run.
    """
    for folder in folders:
        if not Path(folder).expanduser().is_dir():
            raise UserError(f"there is no folder {str(folder)!r}: name folders with finished runs")
    defaults = {
        name: value
        for name, value in flatten(plain(get_config())).items()
        if not name.startswith(BENCHMARKS_OWN)
    }
    records, left_out = read_runs([Path(f).expanduser() for f in folders], defaults)
    panels = panels_of(records)
    if not panels:
        reasons = f" ({left_out[0]})" if left_out else ""
        raise UserError(
            f"no finished run with a test split in {', '.join(map(str, folders))}{reasons}"
            if not records
            else "only runs of zero-shot CLIP were found, which every other run measures as well: "
            "add a run of another --config.method to compare"
        )
    out = Path(place).expanduser().absolute() / REPORT
    out.mkdir(parents=True, exist_ok=True)
    report = Report(out, panels)
    sections = report.sections(left_out)
    benchmarks = dict.fromkeys(benchmark_label(panel.benchmark) for panel in panels)
    title = f"{len(records)} runs on {', '.join(benchmarks)}"
    write_markdown(title, sections, out / "report.md")
    write_html(title, sections, out, "report.html")
    csv_files.write_runs(records, out / "runs.csv")
    csv_files.write_accuracies([*panels, *report.averages], out / "accuracy.csv")
    csv_files.write_verdicts(report.verdicts, out / "significance.csv")
    lines = [f"left out: {line}" for line in left_out]
    return [*lines, f"{len(records)} runs; the report is {out / 'report.html'}"]


class Report:
    """Gathers the sections; figures are written as they are drawn.

    Attributes:
        averages: Over the benchmarks of each backbone that has several.
        answers: Of every run that kept them.
        verdicts: Of every benchmark and backbone.
    """

    def __init__(self, out: Path, panels: Sequence[Panel]):
        self._out = out
        self._panels = panels
        self.averages = averages_of(panels)
        self.answers: AnswersOf = {
            record: answers
            for panel in panels
            for record in panel.records
            if (answers := record.answers()) is not None
        }
        self.verdicts: dict[Panel, list[Verdict]] = {
            panel: verdicts_of(panel.records, self.answers) for panel in panels
        }

    def sections(self, left_out: Sequence[str]) -> list[Section]:
        """The whole report.

        Args:
            left_out: What was found and is not in it.
        """
        sections = [self._accuracy(), self._gains()]
        settings = [table for panel in self._panels for table in tables.setting_tables(panel)]
        if settings:
            sections.append(Section("Settings", tables=settings))
        sections.append(self._significance())
        for panel in self._panels:
            sections += [self._classes(panel), self._calibration(panel), self._pictures(panel)]
        if left_out:
            sections.append(Section("Left out", lines=list(left_out), is_folded=True))
        return sections

    def _accuracy(self) -> Section:
        """Tables 2 and 3, Figure 4."""
        section = Section("Accuracy", tables=[tables.shots_table(panel) for panel in self._panels])
        for panel in self.averages:
            section.tables.append(tables.average_table(panel))
        for benchmark in dict.fromkeys(panel.benchmark for panel in self._panels):
            found = [panel for panel in self._panels if panel.benchmark == benchmark]
            table = tables.backbone_table(found)
            if table is not None:
                section.tables.append(table)
        for backbone in dict.fromkeys(panel.backbone for panel in self._panels):
            found = [p for p in (*self._panels, *self.averages) if p.backbone == backbone]
            caption = (
                f"Accuracy against shots, {backbone}; error bars are the standard deviation over "
                "seeds, the dashed line is zero-shot CLIP."
            )
            section.pictures.append(
                self._figure(plots.accuracy_figure(found), f"accuracy_{backbone}", caption)
            )
        return section

    def _gains(self) -> Section:
        """Figure 3 and its numbers."""
        section = Section("Points above zero-shot CLIP", tables=[tables.gains_table(self._panels)])
        for backbone in dict.fromkeys(panel.backbone for panel in self._panels):
            found = [panel for panel in self._panels if panel.backbone == backbone]
            for name, figure in (
                ("gains_by_benchmark", plots.gains_by_benchmark_figure(found)),
                ("gains_by_method", plots.gains_by_method_figure(found)),
            ):
                if figure is not None:
                    caption = f"Points above zero-shot CLIP, {backbone}."
                    section.pictures.append(self._figure(figure, f"{name}_{backbone}", caption))
        return section

    def _significance(self) -> Section:
        """Each method and its best rival."""
        section = Section(
            "Is the difference real?",
            lines=[
                "Each method beside the best of the others, on the same draws and test images. The "
                "interval is a 95% bootstrap over test images; p is McNemar's exact test in the "
                "seed where it is largest. Seeds ahead says in how many draws the method has the "
                "higher accuracy. Told apart are two whose interval excludes 0 and that differ the "
                "same way in every draw, there with p < 0.05. Nothing is corrected for the number "
                "of comparisons."
            ],
        )
        for panel, verdicts in self.verdicts.items():
            if not verdicts:
                section.lines.append(
                    f"{panel.title}: nothing to compare; it takes two methods whose runs hold "
                    "predictions.npz, at the same shots and seeds."
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
                for v in verdicts
            ]
            columns += ["seeds ahead", "p", "told apart"]
            section.tables.append(Table(panel.title, columns, rows))
        return section

    def _classes(self, panel: Panel) -> Section:
        """Accuracy by class, and what is taken for what."""
        section = Section(f"Classes of {panel.title}", is_folded=True)
        shots = panel.most_shots
        confusions = {
            row.key: confusion_matrix(found)
            for row in panel.rows
            if (found := self._answers_of(panel, row.key))
        }
        if not confusions:
            section.lines.append("None of the runs holds predictions.npz.")
            return section
        key = shown_row(panel) if shown_row(panel) in confusions else next(iter(confusions))
        label = ResultRow(*key).label
        names = [str(name) for name in self._answers_of(panel, key)[0].class_names]
        accuracies = {other: 100 * class_accuracies(c) for other, c in confusions.items()}
        order = np.argsort(accuracies[key], kind="stable")
        rows = [[names[c], *(f"{column[c]:.1f}" for column in accuracies.values())] for c in order]
        stem = file_stem("per_class", panel)
        columns = ["class", *(ResultRow(*other).label for other in confusions)]
        csv_files.write_csv(self._out / f"{stem}.csv", columns, rows)
        section.tables.append(
            Table(
                f"Accuracy by class in %, {shots_label(shots)}, mean over seeds",
                columns,
                rows[:MOST_CLASSES_LISTED],
                [f"The {MOST_CLASSES_LISTED} lowest of {len(rows)}; all are in {stem}.csv."]
                * (len(rows) > MOST_CLASSES_LISTED),
            )
        )
        csv_files.write_csv(
            self._out / f"{file_stem('confusion', panel)}.csv",
            [f"true class ({label}, {shots_label(shots)})", *names],
            [[name, *counts] for name, counts in zip(names, confusions[key], strict=True)],
        )
        section.tables.append(
            Table(
                f"What {label} takes for what, {shots_label(shots)}, all seeds",
                ["true class", "taken for", "images", "% of the class"],
                [
                    [names[true], names[said], str(count), f"{100 * share:.1f}"]
                    for true, said, count, share in worst_confusions(
                        confusions[key], MOST_CONFUSIONS
                    )
                ],
            )
        )
        if len(names) <= MOST_CLASSES_DRAWN:
            title = f"{label}, {shots_label(shots)}"
            section.pictures.append(
                self._figure(
                    confusion_figure(confusions[key], names, title),
                    file_stem("confusion", panel),
                    f"Confusion matrix of {title}: % of each true class, all seeds.",
                )
            )
        return section

    def _calibration(self, panel: Panel) -> Section:
        """What the probabilities are worth."""
        section = Section(f"Calibration on {panel.title}", is_folded=True)
        shots = panel.most_shots
        scores = ("test_ece", "test_ece_tempered", "test_nll", "test_nll_tempered")
        rows = []
        for row in panel.rows:
            found = [r.results for r in panel.records if (r.row, r.shots) == (row.key, shots)]
            if found:
                means = [np.mean([getattr(r, name) for r in found]) for name in scores]
                rows.append([row.label, *means])
        columns = ["method", "ECE", "ECE, tempered", "NLL", "NLL, tempered"]
        csv_files.write_csv(self._out / f"{file_stem('calibration', panel)}.csv", columns, rows)
        section.tables.append(
            Table(
                f"Calibration at {shots_label(shots)}, mean over seeds",
                columns,
                [[label, *(f"{mean:.3f}" for mean in means)] for label, *means in rows],
                ["ECE: expected calibration error, 15 bins. Tempered: by validation images."],
            )
        )
        key = shown_row(panel)
        answers = self._answers_of(panel, key)
        if answers:
            right, zero_shot_right = (
                np.concatenate([said == a.labels for said, a in zip(told, answers, strict=True)])
                for told in (
                    [a.predicted for a in answers],
                    [a.zero_shot_predicted for a in answers],
                )
            )
            label = ResultRow(*key).label
            confidence, tempered = (
                np.concatenate(column) for column in zip(*(a[3:5] for a in answers), strict=True)
            )
            zero_shot = np.concatenate([a.zero_shot_confidence for a in answers])
            curves = {
                "Zero-shot CLIP": reliability(zero_shot, zero_shot_right),
                label: reliability(confidence, right),
                f"{label}, tempered": reliability(tempered, right),
            }
            section.pictures.append(
                self._figure(
                    plots.reliability_figure(curves),
                    file_stem("reliability", panel),
                    f"Reliability at {shots_label(shots)}, all seeds; on the dashed line "
                    "confidence is accuracy.",
                )
            )
        return section

    def _pictures(self, panel: Panel) -> Section:
        """Right and wrong answers of the first seed of FG-VPL."""
        section = Section(f"Answers on {benchmark_label(panel.benchmark)}, {panel.backbone}")
        found = [
            record
            for record in panel.records
            if record.method == FG_VPL and record.shots == panel.most_shots
        ]
        found.sort(key=lambda r: (bool(r.variant), not (r.folder / "checkpoints").is_dir()))
        if not found or found[0] not in self.answers:
            section.lines.append("No pictures: no run of FG-VPL holds predictions.npz.")
            return section
        pictures, line = draw_answers(found[0], self.answers[found[0]], self._out)
        section.pictures += pictures
        section.lines.append(line)
        return section

    def _answers_of(self, panel: Panel, key: Row) -> list[Answers]:
        """Of a row's runs at the most shots."""
        return [
            self.answers[record]
            for record in panel.records
            if (record.row, record.shots) == (key, panel.most_shots) and record in self.answers
        ]

    def _figure(self, figure: Figure, stem: str, caption: str) -> Picture:
        save_figure(figure, self._out / stem)
        return Picture(f"{stem}.svg", caption)


def shown_row(panel: Panel) -> Row:
    """The row whose errors are shown: FG-VPL; where it was not run, the most accurate."""
    if panel.row((FG_VPL, ())) is not None:
        return FG_VPL, ()
    at_most = [
        (found.mean, row.key) for row in panel.rows if (found := row.spread(panel.most_shots))
    ]
    return max(at_most, key=lambda pair: pair[0])[1]


def file_stem(kind: str, panel: Panel) -> str:
    """Of the files of one panel."""
    return f"{kind}_{panel.benchmark}_{panel.backbone}".replace(os.sep, "-")
