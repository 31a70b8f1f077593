"""The style of all figures, and the confusion figure, which training logs show as well."""

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Int
from matplotlib import font_manager
from matplotlib.figure import Figure

BASELINE, GRID, INK = "#555555", "#E3E3E3", "#222222"
STYLE: Mapping[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "font.size": 9.5,
    "grid.color": GRID,
    "legend.frameon": False,
    "svg.hashsalt": "fgvpl_jax",  # makes the identifiers in an SVG reproducible
    "text.parse_math": False,  # a class may be called "$5 note"
}
# Fonts found on Linux, macOS and Windows. The first covers the alphabets, the others Chinese,
# Japanese and Korean.
FONTS = ("DejaVu Sans", "Noto Sans CJK JP", "Hiragino Sans", "Microsoft YaHei")


def save_figure(figure: Figure, stem: Path) -> None:
    """Writes `<stem>.png` and `<stem>.svg`."""
    with matplotlib.rc_context(rc=figure_style()), warnings.catch_warnings():
        # A figure without some letters of a class's name is still useful: the tables have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})


def confusion_figure(
    confusion: Int[np.ndarray, "k k"], class_names: Sequence[str], title: str
) -> Figure:
    """Draws the share of each true class's images (row) in each predicted class (column)."""
    k = len(class_names)
    totals = np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shares = 100 * confusion / totals
    with matplotlib.rc_context(rc=figure_style() | {"axes.grid": False}):
        side = 2.6 + 0.36 * k
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        ax = figure.subplots()
        image = ax.imshow(shares, cmap="cividis", vmin=0, vmax=100)
        names = [shortened(name) for name in class_names]
        ax.set_xticks(range(k), names, rotation=45, ha="right", rotation_mode="anchor")
        ax.set_yticks(range(k), names)
        ax.set_xlabel("predicted")
        ax.set_ylabel("true")
        ax.set_title(title)
        for i, j in itertools.product(range(k), range(k)) if k <= 20 else ():
            if confusion[i, j]:
                colour = "white" if shares[i, j] < 55 else "black"
                ax.text(j, i, f"{shares[i, j]:.0f}", ha="center", va="center", color=colour, size=8)
        figure.colorbar(image, label="% of the true class", shrink=0.8)
    return figure


def figure_style() -> Any:
    """Returns matplotlib's settings, with the fonts that are installed."""
    installed = set(font_manager.get_font_names())
    return dict(STYLE) | {"font.family": [name for name in FONTS if name in installed]}


def shortened(text: str, most: int = 24) -> str:
    """Returns the text, cut to at most `most` characters."""
    return text if len(text) <= most else text[: most - 1] + "…"
