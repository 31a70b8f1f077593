"""Draws the figures: in one style, readable without colour, the same bytes for the same runs."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fgvpl_jax.displays.figures import BASELINE, INK, figure_style, shortened
from fgvpl_jax.displays.labels import FG_VPL, ZERO_SHOT, benchmark_label, method_label, shots_label
from fgvpl_jax.evaluation import LearningCurve
from fgvpl_jax.reports.panels import Panel, ResultRow, Row, drawn_rows
from fgvpl_jax.reports.per_class import Reliability

# Colour and marker of each method. Okabe and Ito's colours, which people who confuse red and green
# can distinguish, do not suffice; markers and dashes carry the same information.
LOOKS = {
    "linear_probe": ("#999999", "s"),
    "svm": ("#B8A000", "p"),
    "gda": ("#117733", "*"),
    "kernel_ridge": ("#332288", ">"),
    "kernel_ridge_plain": ("#6699CC", "d"),
    "lp_plus_plus": ("#AA4499", "H"),
    "clap": ("#44AA99", "1"),
    "rla": ("#661100", "2"),
    "clip_adapter": ("#56B4E9", "v"),
    "coop": ("#E69F00", "^"),
    "tip_adapter": ("#009E73", "D"),
    "tip_adapter_f": ("#0072B2", "P"),
    "clip_lora": ("#8C564B", "X"),
    "clip_svd": ("#DDAA33", "3"),
    "two_stage": ("#66A61E", "4"),
    "fvp": ("#CC79A7", "h"),
    "tar": ("#882255", "<"),
    "fg_vpl": ("#D55E00", "o"),
    "gda_pool": ("#000000", "8"),
    "auto": ("#0000FF", "x"),
}
OTHER_LOOK = "#7A7A7A", "+"  # of a method that is not this version's
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
PANELS_A_LINE = 3
LEAST_SECONDS = 0.01  # where a faster fit is drawn on the logarithmic axis
LEGEND_LINE = 0.2  # inches


def accuracy_figure(panels: Sequence[Panel]) -> Figure:
    """Returns Figure 4: accuracy against shots in a plot per benchmark, with error bars over seeds.

    A line is interrupted at a number of shots that was not run.

    Args:
        panels: Panels of one backbone, including averages.
    """
    keys = drawn_rows(panels)
    figure, axes = _grid_of(len(panels), height=2.9)
    with matplotlib.rc_context(rc=figure_style()):
        for ax, panel in zip(axes, panels, strict=True):
            ax.axhline(panel.zero_shot, color=BASELINE, linestyle=(0, (4, 3)), linewidth=1.2)
            for key in keys:
                row = panel.row(key)
                spreads = [row and row.spread(n) for n in panel.shots]
                if any(spreads):
                    ax.errorbar(
                        range(len(spreads)),
                        [s.mean if s else np.nan for s in spreads],
                        [s.deviation or 0.0 if s else np.nan for s in spreads],
                        **_line_style(key, keys),
                    )
            ax.set_title(benchmark_label(panel.benchmark))
            ax.set_xticks(
                range(len(panel.shots)), ["all" if n is None else str(n) for n in panel.shots]
            )
            ax.set_xlim(-0.3, len(panel.shots) - 0.7)
            ax.set_xlabel("training images per class")
            ax.set_ylabel("test accuracy (%)")
        _legend(figure, axes[0], keys)
    return figure


def time_figure(panels: Sequence[Panel]) -> Figure:
    """Returns accuracy against training seconds in a plot per benchmark, a line per method.

    A line has a point for each number of shots, in order; the point at the most shots is largest.
    """
    keys = drawn_rows(panels)
    figure, axes = _grid_of(len(panels), height=3.4)
    with matplotlib.rc_context(rc=figure_style()):
        for ax, panel in zip(axes, panels, strict=True):
            ax.axhline(panel.zero_shot, color=BASELINE, linestyle=(0, (4, 3)), linewidth=1.2)
            for key in keys:
                row = panel.row(key)
                points = (
                    []
                    if row is None
                    else [
                        (max(seconds.mean, LEAST_SECONDS), accuracy.mean)
                        for n in panel.shots
                        if (accuracy := row.spread(n)) and (seconds := panel.seconds(key, n))
                    ]
                )
                if points:
                    style = _line_style(key, keys)
                    names = ("color", "marker", "linestyle", "zorder")
                    shared: dict[str, Any] = {name: style[name] for name in names}
                    ax.plot(*zip(*points, strict=True), linewidth=0.9, markersize=3.5, **shared)
                    ax.plot(*points[-1], markersize=7.5, **shared)
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
            ax.set_title(benchmark_label(panel.benchmark))
            ax.set_xlabel("training seconds")
            ax.set_ylabel("test accuracy (%)")
        _legend(figure, axes[0], keys)
    return figure


def learning_figure(curves: Mapping[str, LearningCurve]) -> Figure:
    """Returns held-out accuracy against photos per class, a line for each of the named curves.

    A dashed line leads to the accuracy that is expected with twice as many photos.
    """
    figure, (ax,) = _grid_of(1, height=2.9)
    ticks: set[float] = set()
    with matplotlib.rc_context(rc=figure_style()):
        # The expected accuracies are drawn next to each other.
        places = np.geomspace(0.94, 1.06, len(curves)) if len(curves) > 1 else np.ones(1)
        colours = cycle(CURVE_COLOURS)
        for (label, curve), place, colour in zip(curves.items(), places, colours, strict=False):
            photos, accuracies = list(curve.photos_per_class), 100 * np.array(curve.accuracies)
            ax.plot(photos, accuracies, "o-", color=colour, markersize=4, label=label)
            end, (low, high) = 2 * curve.photos * place, curve.twice_interval
            dashes = [photos[-1], end], [accuracies[-1], 100 * curve.twice]
            ax.plot(*dashes, "--", color=colour, linewidth=1.0)
            ax.vlines(end, 100 * low, 100 * high, color=colour, linewidth=1.2)
            ax.plot(end, 100 * curve.twice, "o", color=colour, markerfacecolor="white")
            ticks |= {*photos[:-1], curve.photos, 2 * curve.photos}
        ax.set_xscale("log")
        ax.minorticks_off()
        ax.set_xticks(sorted(ticks), [f"{tick:.3g}" for tick in sorted(ticks)])
        ax.set_xlabel("photos per class")
        ax.set_ylabel("accuracy on held-out photos (%)")
        ax.legend(loc="lower right")
    return figure


def gains_by_method_figure(panels: Sequence[Panel]) -> Figure:
    """Returns the points above zero-shot CLIP at the most shots, in a plot per benchmark."""
    keys = drawn_rows(panels)
    figure, axes = _grid_of(len(panels), height=0.9 + 0.27 * len(keys))
    with matplotlib.rc_context(rc=figure_style()):
        for ax, panel in zip(axes, panels, strict=True):
            bars = []
            for key in keys:
                row = panel.row(key)
                found = None if row is None else row.spread(panel.most_shots)
                if found is not None:
                    gain = found.mean - panel.zero_shot
                    colour, _ = LOOKS.get(key[0], OTHER_LOOK)
                    bars.append((ResultRow(*key).label, gain, found.deviation, colour))
            bars.sort(key=lambda bar: bar[1])
            _bars(ax, bars)
            ax.set_title(f"{benchmark_label(panel.benchmark)}, {shots_label(panel.most_shots)}")
    return figure


def gains_by_benchmark_figure(panels: Sequence[Panel]) -> Figure | None:
    """Returns Figure 3: FG-VPL's points above zero-shot CLIP by benchmark; None for only one."""
    bars = []
    for panel in panels:
        row = panel.row((FG_VPL, ()))
        found = None if row is None else row.spread(panel.most_shots)
        if found is not None:
            label = f"{benchmark_label(panel.benchmark)} ({shots_label(panel.most_shots)})"
            bars.append((label, found.mean - panel.zero_shot, found.deviation, LOOKS[FG_VPL][0]))
    if len(bars) < 2:
        return None
    bars.sort(key=lambda bar: bar[1])
    figure, (ax,) = _grid_of(1, height=1.0 + 0.3 * len(bars))
    with matplotlib.rc_context(rc=figure_style()):
        _bars(ax, bars)
        ax.set_title(f"{method_label(FG_VPL)} compared with zero-shot CLIP")
    return figure


def reliability_figure(curves: Mapping[str, Reliability]) -> Figure:
    """Returns plots of accuracy against confidence, with the share of images below each."""
    with matplotlib.rc_context(rc=figure_style()):
        figure = Figure(figsize=(3.4 * len(curves), 4.0), layout="constrained")
        axes = figure.subplots(
            2, len(curves), squeeze=False, sharex=True, height_ratios=(4, 1), sharey="row"
        )
        for (label, curve), ax, below in zip(curves.items(), axes[0], axes[1], strict=True):
            bins = len(curve.share)
            middles = (np.arange(bins) + 0.5) / bins
            ax.plot([0, 1], [0, 1], color=BASELINE, linestyle=(0, (4, 3)), linewidth=1.2)
            ax.plot(curve.confidence, curve.accuracy, "o-", color=LOOKS[FG_VPL][0], markersize=4)
            ax.set_title(f"{label}\nECE {curve.ece:.3f}")
            below.bar(middles, 100 * curve.share, 0.9 / bins, color="#56B4E9")
            below.set_xlabel("confidence")
            ax.set_xlim(0, 1)
            ax.set_ylim(-0.02, 1.02)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("% of images")
    return figure


def _grid_of(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure of `count` small plots, at most three per line."""
    columns = min(count, PANELS_A_LINE)
    lines = math.ceil(count / columns)
    width = 5.6 if count == 1 else 4.0 * columns
    with matplotlib.rc_context(rc=figure_style()):
        figure = Figure(figsize=(width, lines * height + 0.4), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def _line_style(key: Row, keys: Sequence[Row]) -> dict[str, Any]:
    """Returns a row's style: FG-VPL is thickest and on top; dashes mark a method's settings."""
    variants = [other for other in keys if other[0] == key[0]]
    is_ours = key[0] == FG_VPL
    colour, marker = LOOKS.get(key[0], OTHER_LOOK)
    return {
        "label": ResultRow(*key).label,
        "color": colour,
        "marker": marker,
        "linestyle": DASHES[variants.index(key) % len(DASHES)],
        "linewidth": 2.2 if is_ours else 1.3,
        "markersize": 6 if is_ours else 5,
        "capsize": 2.5,
        "elinewidth": 1.0,
        "zorder": 3 if is_ours else 2,
    }


def _legend(figure: Figure, ax: Axes, keys: Sequence[Row]) -> None:
    """Draws one legend for all plots, in room that is added below them."""
    handles = [Line2D([], [], color=BASELINE, linestyle=(0, (4, 3)), label=method_label(ZERO_SHOT))]
    for key in keys:
        style = _line_style(key, keys)
        names = ("label", "color", "marker", "linestyle", "linewidth", "markersize")
        handles.append(Line2D([], [], **{name: style[name] for name in names}))
    width, height = figure.get_size_inches()
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(max(1, int(width / (0.6 + 0.075 * longest))), len(handles))
    figure.set_figheight(height + LEGEND_LINE * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def _bars(ax: Axes, bars: Sequence[tuple[str, float, float | None, str]]) -> None:
    """Draws horizontal bars (label, length, deviation, colour), the first at the bottom."""
    places = range(len(bars))
    lengths = [length for _, length, _, _ in bars]
    ax.barh(
        places,
        lengths,
        xerr=[deviation or 0.0 for _, _, deviation, _ in bars],
        color=[colour for *_, colour in bars],
        error_kw={"ecolor": INK, "elinewidth": 1.0, "capsize": 2.5},
        height=0.7,
    )
    ax.set_yticks(places, [shortened(label, 34) for label, *_ in bars])
    ax.grid(axis="y", visible=False)
    ax.axvline(0, color=BASELINE, linewidth=1.0)
    ax.set_xlabel("points above zero-shot CLIP")
    ax.margins(x=0.25)  # leaves room for the numbers
    gap = 0.015 * np.ptp(ax.get_xlim())
    for y, (_, length, deviation, _) in zip(places, bars, strict=True):
        # Always on the right, as the names are on the left.
        end = max(0.0, length + (deviation or 0.0)) + gap
        ax.text(end, y, f"{length:+.1f}", va="center", size=8.5)
