"""The picture of the causality probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from illama.report import Figure, svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from illama.analysis.causality import LayerLeak

FLOOR, CEILING = -16, 0  # decades shown where nothing moved
ZERO_COLOR, EXCHANGED_COLOR = "#D6EAF8", "#EEEEEE"


def draw_leak(found: Sequence[torch.Tensor], cuts: Sequence[int], layers: Sequence[LayerLeak]) -> Figure:
    """How earlier tokens move by layer, and each of them behind the last layer.

    Args:
        found: For each cut the relative changes (L, n, cut + 1).
        cuts: The last token kept.
        layers: The same by layer.
    """
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10.5, 4.1), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_layers(left, layers)
    _draw_tokens(right, found, cuts)
    canvas.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    strict = not any(layer.moved for layer in layers)
    caption = (
        "Left: the lower a point, the less do earlier tokens change when later patches are exchanged; at the bottom "
        "they do not change by a single bit. Right: each row is one cut, and its cells are the relative changes of the "
        "earlier tokens after the last layer, mean of the images."
    )
    alt = "No earlier token changes" if strict else f"Earlier tokens change by up to {layers[-1].largest:.2g}"
    return Figure("causality", svg_bytes(canvas), f"{alt} when later patches are exchanged", caption)


def _draw_layers(ax: Axes, layers: Sequence[LayerLeak]) -> None:
    largest = [layer.largest for layer in layers]
    nonzero = [value for layer in layers for value in (*layer.quantiles, layer.largest) if value > 0]
    low = int(np.floor(np.log10(min(nonzero)))) if nonzero else FLOOR
    high = int(np.ceil(np.log10(max(nonzero)))) if nonzero else CEILING
    zero = low - max(1.0, 0.08 * (high - low))

    def height(values: Sequence[float]) -> list[float]:
        return [float(np.log10(value)) if value > 0 else zero for value in values]

    numbers = range(1, len(layers) + 1)
    below, middle, above = (height(column) for column in zip(*(layer.quantiles for layer in layers), strict=True))
    ax.fill_between(numbers, below, above, color=BLUE, alpha=0.2, linewidth=0, label="10 to 90 % of the tokens")
    ax.plot(numbers, middle, color=BLUE, marker="o", markersize=4, label="median")
    ax.plot(numbers, height(largest), color=ORANGE, marker="^", markersize=4, linestyle="--", label="largest")
    ax.axhline(zero, color=GREY, linewidth=0.8, zorder=0)
    step = max(1, -(-(high - low) // 6))
    decades = list(range(high, low - 1, -step))
    ax.set_yticks([zero, *decades], ["exactly 0", *(f"$10^{{{decade}}}$" for decade in decades)])
    ax.set_xticks(list(numbers)[:: max(1, len(layers) // 12)])
    ax.set(ylim=(zero - 0.06 * (high - zero), high + 0.03 * (high - zero)), xlim=(0.5, len(layers) + 0.5))
    ax.set(xlabel="layer", ylabel="relative change (change / norm)")
    ax.set_title("later patches exchanged: earlier tokens by layer", fontsize=10)


def _draw_tokens(ax: Axes, found: Sequence[torch.Tensor], cuts: Sequence[int]) -> None:
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Patch

    cells = np.full((len(cuts), cuts[-1] + 2), np.nan)
    for row, changes_LBt in zip(cells, found, strict=True):
        row[: changes_LBt.shape[2]] = changes_LBt[-1].mean(0).numpy()
    ax.set_facecolor(EXCHANGED_COLOR)
    zeros = np.where(cells == 0, 1.0, np.nan)
    moved = np.where(cells > 0, cells, np.nan)
    ax.imshow(zeros, cmap=ListedColormap([ZERO_COLOR]), aspect="auto", interpolation="none")
    if np.isfinite(moved).any():
        low, high = np.nanmin(moved), np.nanmax(moved)
        scale = LogNorm(low if low < high else high / 10, high)
        image = ax.imshow(moved, cmap="viridis", norm=scale, aspect="auto", interpolation="none")
        assert ax.figure is not None
        ax.figure.colorbar(image, ax=ax, label="relative change after the last layer")
    ax.set_yticks(range(len(cuts)), [str(cut) for cut in cuts])
    ax.set(xlabel="token in sequence order (0 = first)", ylabel="cut: last token that is kept")
    ax.set_title("every earlier token", fontsize=10)
    kinds = [Patch(color=EXCHANGED_COLOR, label="exchanged")]
    if np.isfinite(zeros).any():
        kinds.insert(0, Patch(color=ZERO_COLOR, label="exactly 0"))
    ax.legend(handles=kinds, fontsize=8, loc="upper right", framealpha=0.9)
