"""The pictures of a study: curves of its rows, the paper's roadmap beside ours, and the values scales are made for."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from illama.report import svg_bytes
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FAR = 1.5  # a gap of so many times the range of the majority: on one scale it would have less than half the length
FAR_SHARE = 0.25  # and at least this share of the majority's median, or three nearly equal values would have an outlier


def far_from_most(values: Sequence[float]) -> list[bool]:
    """Which values lie beyond a gap so wide that the majority would be squashed on one scale with them.

    Args:
        values: Finite numbers, such as the accuracies of a study's rows of which one collapsed to chance.

    Returns:
        For each value whether it is left out of the scale. The majority never is; of two values neither is.
    """
    far = [False] * len(values)
    while True:
        kept = sorted(value for value, out in zip(values, far, strict=True) if not out)
        cuts = [
            (high - low, high, at)
            for at, (low, high) in enumerate(itertools.pairwise(kept), start=1)
            if at != len(kept) - at  # two halves: neither is the exception
        ]
        if not cuts:
            return far
        gap, border, below = max(cuts)
        lower_is_far = below < len(kept) - below
        majority = kept[below:] if lower_is_far else kept[:below]
        too_few = 2 * len(majority) <= len(values)
        if too_few or gap <= max(FAR * (majority[-1] - majority[0]), FAR_SHARE * abs(statistics.median(majority))):
            return far
        far = [out or (value < border) == lower_is_far for value, out in zip(values, far, strict=True)]


def with_margin(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a scale that has these values (at least one) inside, even if all of them are equal."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


# The rest of Okabe and Ito's palette that stands out on white. Rows beyond the colours differ by their dashes.
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (3.5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)))
PANEL_INCHES = (5.6, 4.0)
SWITCH = "end of the soft mask"
FEW = 10  # epochs, up to which each is a dot
LEGEND_ROWS = 16  # as many fit into a panel's place
START = 0.25  # share of the epochs that need not be in the picture: they go from chance to most of the result


@dataclass(frozen=True)
class Line:
    """One row of a study.

    Attributes:
        label: Its name in the legend.
        epochs: Where it was measured.
        seeds: For each seed the values at these epochs; NaN where there is none.
        switch: The epoch where the soft mask ended, where there was one.

    Raises:
        ValueError: A seed has another number of values than there are epochs.
    """

    label: str
    epochs: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]
    switch: float | None = None

    def __post_init__(self) -> None:
        for values in self.seeds:
            if len(values) != len(self.epochs):
                raise ValueError(f"{self.label}: {len(values)} values for {len(self.epochs)} epochs")


@dataclass(frozen=True)
class StudyPanel:
    """One quantity, for several rows."""

    title: str
    ylabel: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Step:
    """One row of the roadmap: its accuracy in percent, published and, for each seed, ours (NaN where there is none)."""

    label: str
    paper: float | None
    ours: tuple[float, ...]


def draw_study_curves(panels: Sequence[StudyPanel]) -> bytes:
    """Panels side by side, two in a row, with one legend: the mean over seeds in a band of one standard deviation.

    A row has the same colour and dashes in all panels. A dotted vertical line and a dot on the curve mark where its
    soft mask ended. The first quarter of the epochs may leave the picture, and so may a row that is far from most
    others; that one is named at the edge with its last value.

    Args:
        panels: At least one.

    Returns:
        An SVG file.
    """
    from matplotlib.figure import Figure

    styles = _styles(panels)
    switched = any(line.switch is not None for panel in panels for line in panel.lines)
    entries = [*styles, *[SWITCH] * switched]
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = PANEL_INCHES[0] * columns
    below = len(panels) % 2 == 0 or len(panels) == 1 or len(entries) > LEGEND_ROWS
    legend_columns = _legend_columns(entries, width) if below else 1
    legend_height = 0.2 * math.ceil(len(entries) / legend_columns) + 0.2 if below else 0.0
    figure = Figure(figsize=(width, PANEL_INCHES[1] * rows + legend_height), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel, styles)
    if below:
        _add_legend(figure, styles, switched, loc="outside lower center", ncols=legend_columns)
    else:
        _add_legend(grid[-1], styles, switched, loc="center left")  # the place of an odd last panel's neighbour is free
    return svg_bytes(figure)


def _styles(panels: Sequence[StudyPanel]) -> dict[str, dict[str, Any]]:
    """Colour and dashes of each label, in the order in which they first appear."""
    labels = dict.fromkeys(line.label for panel in panels for line in panel.lines)
    return {
        label: {"color": COLORS[at % len(COLORS)], "linestyle": DASHES[at // len(COLORS) % len(DASHES)]}
        for at, label in enumerate(labels)
    }


def _legend_columns(labels: Iterable[str], width_inches: float) -> int:
    widest = max(map(len, labels), default=1)
    return max(1, min(4, int(width_inches / (0.075 * widest + 0.6))))


def _add_legend(place: Figure | Axes, styles: dict[str, dict[str, Any]], switched: bool, **where: Any) -> None:
    from matplotlib.lines import Line2D

    if not styles:
        return
    handles = [Line2D([], [], linewidth=1.8, **style) for style in styles.values()]
    labels = list(styles)
    if switched:
        handles.append(Line2D([], [], color=GREY, linestyle=":", linewidth=1.2, marker="o", markersize=5))
        labels.append(SWITCH)
    legend = place.legend(handles, labels, frameon=False, fontsize=9, handlelength=3.2, **where)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a label is no formula


def _draw_panel(axes: Axes, panel: StudyPanel, styles: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = [(line, *_mean_and_sd(line)) for line in panel.lines]
    for line, mean, sd in drawn:
        style = styles[line.label]
        several = len(line.seeds) > 1
        few = len(line.epochs) <= FEW  # a single point is no line
        axes.plot(
            line.epochs, mean, linewidth=1.8 if several else 1.1, marker="o" if few else None, markersize=3, **style
        )
        if several:
            axes.fill_between(line.epochs, mean - sd, mean + sd, color=style["color"], alpha=0.12, linewidth=0)
    _mark_switches(axes, drawn, styles)
    _limit_scale(axes, drawn)
    axes.set_title("\n".join(textwrap.wrap(panel.title, 52)), fontsize=11, parse_math=False)
    axes.set_ylabel("\n".join(textwrap.wrap(panel.ylabel, 40)), parse_math=False)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _mean_and_sd(line: Line) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation over the seeds with a value, (epochs,); NaN with none, with less than two."""
    values = np.array(line.seeds, dtype=float).reshape(len(line.seeds), len(line.epochs))
    finite = np.isfinite(values)
    count = finite.sum(axis=0)
    mean = np.where(finite, values, 0.0).sum(axis=0) / np.where(count > 0, count, np.nan)
    squares = np.where(finite, values - mean, 0.0) ** 2
    return mean, np.sqrt(squares.sum(axis=0) / np.where(count > 1, count - 1, np.nan))


Drawn = list[tuple[Line, np.ndarray, np.ndarray]]


def _mark_switches(axes: Axes, drawn: Drawn, styles: dict[str, dict[str, Any]]) -> None:
    at: dict[float, list[str]] = {}
    for line, mean, _ in drawn:
        finite = np.isfinite(mean)
        if line.switch is None or not finite.any():
            continue
        epochs = np.array(line.epochs, dtype=float)[finite]
        at.setdefault(line.switch, []).append(line.label)
        if epochs[0] <= line.switch <= epochs[-1]:
            height = np.interp(line.switch, epochs, mean[finite])
            axes.plot(line.switch, height, "o", color=styles[line.label]["color"], markersize=5, zorder=3)
    for epoch, labels in at.items():
        color = styles[labels[0]]["color"] if len(labels) == 1 else GREY  # one line serves several rows
        axes.axvline(epoch, color=color, linestyle=":", linewidth=1.2, zorder=1)


def _limit_scale(axes: Axes, drawn: Drawn) -> None:
    """Show the range of the later epochs, of those from a row's switch on, and only of rows that are together.

    Curves begin with a cliff, and a collapsed row lies far from all others. A scale that held both would press what the
    study is about, differences of a percent between rows, into a few pixels.
    """
    drawn = [(line, mean, sd) for line, mean, sd in drawn if np.isfinite(mean).any()]
    if not drawn:
        return
    last = [float(mean[np.isfinite(mean)][-1]) for _, mean, _ in drawn]
    far = far_from_most(last)
    epochs = sorted({epoch for line, _, _ in drawn for epoch in line.epochs})
    shown_from = epochs[0] + START * (epochs[-1] - epochs[0]) if len(epochs) > FEW else epochs[0]
    seen: list[float] = []
    for (line, mean, sd), is_far in zip(drawn, far, strict=True):
        if not is_far:
            late = np.array(line.epochs) >= min(shown_from, math.inf if line.switch is None else line.switch)
            band = np.nan_to_num(sd)[late]
            seen += [*(mean[late] - band), *(mean[late] + band)]
    low, high = with_margin([value for value in seen if math.isfinite(value)] or last)
    outside = [(line, value) for (line, _, _), value, is_far in zip(drawn, last, far, strict=True) if is_far]
    below, above = ([(line, v) for line, v in outside if (v < low) == down] for down in (True, False))
    room = 0.075 * (high - low)  # for one line of text
    axes.set_ylim(low - room * len(below), high + room * len(above))
    for names, arrow, edge, step in ((below, "\N{DOWNWARDS ARROW}", 0, 1), (above, "\N{UPWARDS ARROW}", 1, -1)):
        for number, (line, value) in enumerate(names):
            axes.annotate(
                f"{textwrap.shorten(line.label, 40, placeholder='...')} {arrow} {value:.3g}",
                (1, edge),
                (-3, step * (3 + 13 * number)),
                xycoords="axes fraction",
                textcoords="offset points",
                ha="right",
                va="bottom" if step > 0 else "top",
                fontsize=9,
                parse_math=False,
            )


def draw_steps(steps: Sequence[Step], title_paper: str, title_ours: str) -> bytes:
    """The paper's Fig. 1 beside ours: a dot for each row in order, with its number; for ours also the single seeds and
    the standard deviation over them. A row that is far from most others is an arrow at the edge.

    Args:
        steps: The rows, at least one.
        title_paper: Above the published accuracies.
        title_ours: Above ours.

    Returns:
        An SVG file.
    """
    from matplotlib.figure import Figure

    labels = ["\n".join(textwrap.wrap(step.label, 36)) for step in steps]
    tallest = max(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(11, (0.2 + 0.17 * tallest) * len(steps) + 1.3), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    _draw_column(left, [() if step.paper is None else (step.paper,) for step in steps], GREY, title_paper, digits=1)
    _draw_column(right, [step.ours for step in steps], BLUE, title_ours, digits=2)
    left.set_yticks(range(len(steps)), labels, parse_math=False)
    left.set_ylim(len(steps) - 0.5, -0.5)
    return svg_bytes(figure)


def _draw_column(axes: Axes, rows: Sequence[Sequence[float]], color: str, title: str, digits: int) -> None:
    rows = [[value for value in row if math.isfinite(value)] for row in rows]
    means = [statistics.fmean(row) if row else math.nan for row in rows]
    every = [value for row in rows for value in row]
    far = far_from_most(every)
    low, high = with_margin([value for value, out in zip(every, far, strict=True) if not out] or [0.0, 100.0])
    high = max(min(high, 100.0), low + 1e-9)  # of percents
    axes.set_xlim(low, high)
    path = [(at, min(max(mean, low), high)) for at, mean in enumerate(means) if math.isfinite(mean)]
    axes.plot([mean for _, mean in path], [at for at, _ in path], color=color, alpha=0.35, linewidth=1.2)
    for at, (row, mean) in enumerate(zip(rows, means, strict=True)):
        axes.axhline(at, color=GREY, alpha=0.2, linewidth=0.8, zorder=0)
        if row:
            _draw_row(axes, at, row, mean, color, digits)
    axes.set_title("\n".join(textwrap.wrap(title, 50)), fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel("top-1 accuracy (%)")
    axes.tick_params(left=False)
    axes.grid(axis="x", alpha=0.25)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _draw_row(axes: Axes, at: int, row: Sequence[float], mean: float, color: str, digits: int) -> None:
    low, high = axes.get_xlim()
    text = f"{mean:.{digits}f}"
    if len(row) > 1:
        sd = statistics.stdev(row)
        text += f" \N{PLUS-MINUS SIGN} {sd:.{digits}f}"
        axes.plot([mean - sd, mean + sd], [at, at], color=color, linewidth=2.5, alpha=0.6, solid_capstyle="butt")
        axes.plot(row, [at + 0.24] * len(row), "o", color=color, markersize=2.5)
    by_row = axes.get_yaxis_transform()  # x in parts of the axes, y in rows
    place: dict[str, Any] = {"xycoords": by_row, "textcoords": "offset points", "va": "center", "fontsize": 9}
    if low <= mean <= high:
        axes.plot(mean, at, "o", color=color, markersize=7, zorder=2)
    else:
        edge, arrow, side, inwards = (0, "<", "left", 9) if mean < low else (1, ">", "right", -9)
        axes.plot(edge, at, arrow, color=ORANGE, markersize=8, transform=by_row, clip_on=False)
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        look: dict[str, Any] = {"color": ORANGE, "fontweight": "bold", "bbox": box}
        axes.annotate(f"{mean:.1f}", (edge, at), (inwards, 0), ha=side, **place, **look)
    axes.annotate(text, (1, at), (6, 0), annotation_clip=False, **place)
