"""Accuracy by class as bars, the confusion matrix, and names of classes as tables and pictures have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from illama.console import text
from illama.data.imagenet import readable
from illama.report import svg_bytes
from illama.report.formats import BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LONGEST_NAME = 28  # characters beside an axis; what follows is cut off


def shown(name: str) -> str:
    """A name on one line; a WordNet id of ImageNet with its word."""
    return text.shown(" ".join(readable(name).split()))


def short(name: str) -> str:
    """The same, where there is room for `LONGEST_NAME` characters."""
    name = shown(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."


BAR_INCHES = 0.2
LABEL_CELLS_UP_TO = 20  # classes; in a larger matrix numbers would not fit into the cells


def recall_picture(bars: Sequence[tuple[str, float, int]], gap_after: int | None) -> bytes:
    """Horizontal bars, as SVG.

    Args:
        bars: Class, percent, images; drawn from the top down.
        gap_after: Bars before a gap, where classes between the weakest and the strongest are left out.
    """
    from matplotlib.figure import Figure

    places = np.arange(len(bars), dtype=float)
    if gap_after is not None:
        places[gap_after:] += 1.5
    figure = Figure(figsize=(8, 0.9 + BAR_INCHES * (places[-1] + 1)), layout="constrained")
    axes = figure.subplots()
    axes.barh(places, [percent for _, percent, _ in bars], 0.8, color=BLUE)
    for place, (_, percent, images) in zip(places, bars, strict=True):
        text = f"{percent:.1f} % of {images:,}"
        axes.annotate(text, (percent, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    if gap_after is not None:
        axes.text(1, gap_after + 0.25, "...", va="center", color=GREY)
    axes.set_yticks(places, [short(name) for name, _, _ in bars], fontsize=8, parse_math=False)
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, % of the class's images")
    axes.spines[["top", "right"]].set_visible(False)
    return svg_bytes(figure)


def confusion_picture(confusion: np.ndarray, names: Sequence[str]) -> bytes:
    """Percent of each row as shades, and as numbers where they fit, as SVG; a class without images is a white row."""
    from matplotlib.figure import Figure

    counts = confusion.sum(axis=1, keepdims=True)
    percent = 100.0 * np.divide(confusion, counts, out=np.full(confusion.shape, np.nan), where=counts > 0)
    side = min(9.5, 3.2 + 0.42 * len(names))
    figure = Figure(figsize=(side + 1, side), layout="compressed")
    axes = figure.subplots()
    # Shades rise with the square root: a few percent off the diagonal must be seen beside ninety on it.
    shades = axes.imshow(np.sqrt(percent), cmap="Blues", vmin=0, vmax=10)
    labels = [short(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("true class")
    if len(names) <= LABEL_CELLS_UP_TO:
        _write_cells(axes, percent)
    scale = figure.colorbar(shades, ax=axes, shrink=0.8, label="% of the true class's images")
    scale.set_ticks(np.sqrt([0, 1, 5, 20, 50, 100]).tolist(), labels=["0", "1", "5", "20", "50", "100"])
    return svg_bytes(figure)


def _write_cells(axes: Axes, percent: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.05:  # else "0.0", or the NaN of a class without images
            color = "white" if value > 40 else "black"
            text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
