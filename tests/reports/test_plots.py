"""Figures of many methods: room for the plot, and methods that look different."""

import numpy as np
import pytest

from fgvpl_jax.methods import AUTO, METHODS
from fgvpl_jax.reports.panels import Panel, ResultRow
from fgvpl_jax.reports.plots import LOOKS, accuracy_figure


def plot_height(names):
    """Returns the height in inches of the plot in a figure of these methods."""
    rows = [ResultRow(name, (), {1: {1: 40.0}, 2: {1: 50.0}}) for name in names]
    figure = accuracy_figure([Panel("eurosat", "clip", [1, 2], rows, 10.0, [])])
    figure.draw_without_rendering()
    return figure.axes[0].get_position().height * figure.get_figheight()


def test_a_long_legend_leaves_the_plot_its_height():
    assert plot_height(LOOKS) == pytest.approx(plot_height(["svm", "gda"]), rel=0.1)


def test_a_line_is_interrupted_where_a_method_was_not_run():
    rows = [
        ResultRow("svm", (), {1: {1: 40.0}, 4: {1: 50.0}}),
        ResultRow("gda", (), {2: {1: 45.0}}),
    ]
    figure = accuracy_figure([Panel("eurosat", "clip", [1, 2, 4], rows, 10.0, [])])
    drawn = [np.array(bars[0].get_ydata(), float) for bars in figure.axes[0].containers]
    gap = np.nan
    np.testing.assert_array_equal(drawn, [[40.0, gap, 50.0], [gap, 45.0, gap]])


def test_every_method_has_its_own_colour_and_marker():
    assert set(LOOKS) == {*METHODS, AUTO} - {"zero_shot"}
    colours, markers = zip(*LOOKS.values(), strict=True)
    assert len(set(colours)) == len(set(markers)) == len(LOOKS)
