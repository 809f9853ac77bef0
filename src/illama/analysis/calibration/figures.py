"""Reliability diagrams side by side (Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from illama.evaluation.calibration import Reliability
from illama.report import svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class ReliabilityPanel(NamedTuple):
    """One diagram.

    Attributes:
        title: Of which images.
        bins: Of equal width.
    """

    title: str
    bins: Reliability


def reliability_picture(panels: Sequence[ReliabilityPanel]) -> bytes:
    """Diagrams above histograms, as SVG: bars = accuracy, shaded = gap to the mean confidence, ECE in the picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 1), sharex=True, sharey="row")
    for panel, (diagram, histogram) in zip(panels, axes.T, strict=True):
        _draw_bins(diagram, panel)
        _draw_histogram(histogram, panel.bins)
    axes[0, 0].set_ylabel("accuracy in the bin")
    axes[1, 0].set_ylabel("images, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for drawn in axes[1, 0].get_legend_handles_labels()[0]:
        handles.append(drawn)
        labels.append(drawn.get_label())
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    return svg_bytes(figure)


def _draw_bins(axes: Axes, panel: ReliabilityPanel) -> None:
    from matplotlib.colors import to_rgba

    bins = panel.bins
    filled = bins.counts > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    axes.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    axes.bar(
        left,
        np.abs(accuracy - confidence),
        width,
        bottom=np.minimum(accuracy, confidence),
        align="edge",
        facecolor=to_rgba(ORANGE, 0.35),
        edgecolor=ORANGE,
        hatch="///",
        linewidth=0.8,
        label="gap to the mean confidence",
    )
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", linewidth=1)
    error = f"ECE {bins.expected_error():.4f}"
    box = {"facecolor": "white", "edgecolor": GREY, "boxstyle": "round"}
    axes.text(0.05, 0.93, error, transform=axes.transAxes, va="top", bbox=box)
    axes.set_title(panel.title, parse_math=False, fontsize="medium")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.spines[["top", "right"]].set_visible(False)


def _draw_histogram(axes: Axes, bins: Reliability) -> None:
    filled = bins.counts > 0
    share = bins.counts / bins.counts.sum()
    axes.bar(bins.edges[:-1], 100 * share, width=np.diff(bins.edges), align="edge", color=GREY, edgecolor="white")
    for values, style, color, label in (
        (bins.accuracy, "-", BLUE, "accuracy of all"),
        (bins.confidence, ":", ORANGE, "mean confidence of all"),
    ):
        axes.axvline(float((share * values)[filled].sum()), linestyle=style, color=color, linewidth=2, label=label)
    axes.set_xlabel("confidence (largest softmax probability)")
    axes.spines[["top", "right"]].set_visible(False)
