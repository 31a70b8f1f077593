"""Builds the report's section about the gain from more photos."""

from collections.abc import Sequence

from fgvpl_jax.displays.labels import shots_label
from fgvpl_jax.evaluation import LearningCurve
from fgvpl_jax.reports import plots
from fgvpl_jax.reports.document import Section, figure_picture
from fgvpl_jax.reports.panels import Panel
from fgvpl_jax.reports.tables import Table

MOST_SEEDS = 5


def learning_section(panels: Sequence[Panel]) -> list[Section]:
    """Returns the learning curves of each panel's draws at the most shots; empty without any."""
    section = Section(
        "Would more photos help?",
        lines=[
            "A quick classifier (GDA on frozen features) is trained on a part of the training "
            "photos and predicts the rest; test photos are not used. The curve is extended with a "
            "power law. Intervals have a level of 90%."
        ],
    )
    columns = ["draw", "photos per class", "accuracy now", "with twice as many", "interval"]
    for panel in panels:
        curves = curves_of(panel)
        if not curves:
            continue
        rows = [
            [
                *(label, f"{curve.photos:g}", f"{curve.now:.1%}", f"{curve.twice:.1%}"),
                *(f"{low:.1%} to {high:.1%}" for low, high in [curve.twice_interval]),
            ]
            for label, curve in curves.items()
        ]
        section.tables.append(Table(panel.title, columns, rows))
        caption = (
            f"Accuracy on held-out photos by photos per class, {panel.title}; dashed: expected "
            "with twice as many, with its 90% interval."
        )
        stem = panel.file_stem("learning_curve")
        section.pictures.append(figure_picture(plots.learning_figure(curves), stem, caption))
    return [section] if section.tables else []


def curves_of(panel: Panel) -> dict[str, LearningCurve]:
    """Returns the curve of each seed at the most shots; it is the same for all methods."""
    found = {
        record.seed: record.results.learning_curve
        for record in panel.records
        if record.shots == panel.most_shots and record.results.learning_curve is not None
    }
    shots = shots_label(panel.most_shots)
    return {f"{shots}, seed {seed}": found[seed] for seed in sorted(found)[:MOST_SEEDS]}
