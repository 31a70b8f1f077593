"""Builds the report's section about training time."""

from collections.abc import Sequence

from fgvpl_jax.displays.labels import shots_label
from fgvpl_jax.reports import plots
from fgvpl_jax.reports.document import Section, figure_picture
from fgvpl_jax.reports.panels import Panel, Row
from fgvpl_jax.reports.tables import NOTHING, Table


def time_section(panels: Sequence[Panel]) -> Section:
    """Returns the seconds of training by method and shots, and accuracy against them."""
    section = Section(
        "Training time",
        lines=[
            "Seconds of all epochs or, for a method that is fitted in one go, of its fit with its "
            "own choices. Encoding photos into frozen features, and evaluation, are not counted. "
            "Runs on different machines, or at the same time on one machine, do not compare."
        ],
    )
    for panel in panels:
        rows = [
            [row.label, *(seconds_entry(panel, row.key, n) for n in panel.shots)]
            for row in panel.rows
        ]
        columns = ["method", *map(shots_label, panel.shots)]
        title = f"{panel.title}, mean training seconds"
        section.tables.append(Table(title, columns, rows))
    for backbone in dict.fromkeys(panel.backbone for panel in panels):
        found = [panel for panel in panels if panel.backbone == backbone]
        caption = (
            f"Accuracy against training seconds, {backbone}: a point for each number of shots, the "
            "largest for the most; means over seeds. The dashed line is zero-shot CLIP."
        )
        figure = plots.time_figure(found)
        section.pictures.append(figure_picture(figure, f"time_{backbone}", caption))
    return section


def seconds_entry(panel: Panel, key: Row, shots: int | None) -> str:
    """Returns the mean training seconds of a row; a dash where there is no run."""
    found = panel.seconds(key, shots)
    if found is None:
        return NOTHING
    return f"{found.mean:.2f}" if found.mean < 10 else f"{found.mean:,.0f}"
