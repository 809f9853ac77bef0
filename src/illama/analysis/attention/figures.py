"""Pictures of attention's numbers: curves of singular values, ranks of all heads, distance, entropy and mass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from illama.report import Figure, svg_bytes
from illama.report.palette import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from illama.analysis.attention.measures import AttentionNumbers

MOST_POINTS = 200  # of a curve; more cannot be told apart at the width of a page
MOST_CELLS = 16 * 16  # of the table of ranks that numbers fit into


def draw_curves(found: AttentionNumbers, layers: Sequence[int], share: float) -> Figure:
    """The paper's Fig. 4 for all heads of some layers.

    Args:
        found: Numbers of the network.
        layers: Indices of the layers.
        share: Where the rank is read off.
    """
    from matplotlib.figure import Figure as Canvas

    tokens = found.curves_LhN.shape[-1]
    canvas = Canvas(figsize=(max(4.5, 2.7 * len(layers)), 2.9), layout="constrained")
    for ax, layer in zip(canvas.subplots(1, len(layers), sharey=True, squeeze=False)[0], layers, strict=True):
        _draw_layer(ax, found.curves_LhN[layer], found.rank_Lh[layer], share)
        ax.set_title(f"layer {layer + 1}", fontsize=10)
        ax.set(xlabel="singular values", xlim=(0, tokens), ylim=(0, 1.03))
        if layer == layers[0]:
            ax.set_ylabel("share of their sum")
            ax.legend(fontsize=8, frameon=False, loc="lower right")
    first = int(found.rank_Lh[0, 0])
    caption = (
        "The later a curve reaches the dashed line, the higher the rank of the attention map: so many singular values "
        f"reach {100 * share:g} % of their sum. One grey line per head, the first head in orange with its rank, blue "
        "the mean of the heads; mean of the images."
    )
    alt = f"Cumulated singular values of attention maps; layer 1, head 1 reaches {100 * share:g} % at {first}"
    return Figure("attention_rank", svg_bytes(canvas), alt, caption)


def _draw_layer(ax: Axes, curves_hN: torch.Tensor, rank_h: torch.Tensor, share: float) -> None:
    tokens = curves_hN.shape[-1]
    step = -(-tokens // MOST_POINTS)
    counts = torch.arange(1, tokens + 1)[step - 1 :: step]

    def draw(ax: Axes, curve_N: torch.Tensor, **style: object) -> None:
        ax.plot(counts, curve_N[step - 1 :: step], **style)  # type: ignore[arg-type]

    for curve_N in curves_hN:
        draw(ax, curve_N, color=GREY, linewidth=0.7, alpha=0.6)
    if len(curves_hN) > 1:
        draw(ax, curves_hN.mean(0), color=BLUE, linewidth=2, label="mean of the heads")
    draw(ax, curves_hN[0], color=ORANGE, linewidth=1.4, label="head 1")
    rank = int(rank_h[0])
    ax.axhline(share, color="black", linestyle="--", linewidth=0.8)
    ax.plot([rank, rank], [0, share], color=ORANGE, linestyle=":", linewidth=1.2)
    # On the side where there is room for it.
    beyond = rank > 0.6 * tokens
    ax.annotate(
        f"{rank}",
        (rank, 0.4),
        xytext=(-3 if beyond else 3, 0),
        textcoords="offset points",
        ha="right" if beyond else "left",
        color=ORANGE,
        fontsize=9,
    )


def draw_heads(found: AttentionNumbers, share: float) -> Figure:
    """The rank of every head of every layer."""
    from matplotlib.figure import Figure as Canvas

    ranks_hL, tokens = found.rank_Lh.T, found.curves_LhN.shape[-1]
    heads, layers = ranks_hL.shape
    canvas = Canvas(
        figsize=(max(4.5, min(11.0, 2.4 + 0.55 * layers)), max(2.4, 1.1 + 0.3 * heads)), layout="constrained"
    )
    ax = canvas.subplots()
    image = ax.imshow(ranks_hL.numpy(), cmap="viridis", vmin=0, vmax=tokens, aspect="auto", interpolation="none")
    numbered = heads * layers <= MOST_CELLS
    if numbered:
        for head, layer in ((head, layer) for head in range(heads) for layer in range(layers)):
            rank = int(ranks_hL[head, layer])
            color = "black" if rank > 0.6 * tokens else "white"
            ax.text(layer, head, str(rank), ha="center", va="center", fontsize=8, color=color)
    ax.set_xticks(range(layers), [str(layer + 1) for layer in range(layers)])
    ax.set_yticks(range(heads), [str(head + 1) for head in range(heads)])
    ax.set(xlabel="layer", ylabel="head")
    canvas.colorbar(image, ax=ax, label=f"rank, of {tokens} tokens")
    caption = (
        f"The brighter a cell, the more singular values that head's attention needs for {100 * share:g} % of their sum"
        f"{'; the number is how many' if numbered else ''}. Ranks are those of the mean curve of all images."
    )
    low, high = int(ranks_hL.min()), int(ranks_hL.max())
    alt = f"Rank of attention by layer and head: {low} to {high} of {tokens}"
    return Figure("attention_heads", svg_bytes(canvas), alt, caption)


def draw_rows(found: AttentionNumbers, indifferent: Sequence[float], *, mass: bool) -> Figure:
    """Distance, entropy and row sums of every head.

    Args:
        found: Numbers of the network.
        indifferent: The same three numbers of attention that does not look: equal scores under the network's mask.
        mass: Whether row sums are drawn; without a mask behind the softmax all are 1.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [(found.distance_Lh, "mean attention distance, px"), (found.entropy_Lh, "entropy of a row, nats")]
    if mass:
        panels.append((found.mass_Lh, "row sum after the mask"))
    canvas = Canvas(figsize=(3.5 * len(panels), 3.4), layout=ConstrainedLayoutEngine(w_pad=0.1))
    layers = range(1, len(found.rank_Lh) + 1)
    axes = canvas.subplots(1, len(panels))
    for ax, (numbers_Lh, label), even in zip(axes, panels, indifferent, strict=False):
        for head_L in numbers_Lh.T:
            ax.plot(layers, head_L, color=BLUE, marker="o", markersize=4, linestyle="none", alpha=0.55)
        ax.plot(layers, numbers_Lh.nanmean(1), color=ORANGE, linewidth=1.6, label="mean of the heads")
        ax.axhline(even, color=GREY, linestyle="--", linewidth=1, label="equal scores")
        ax.set_xticks(list(layers)[:: max(1, len(layers) // 12)])
        top = 1.08 * max(even, float(numbers_Lh.nan_to_num().max()))
        ax.set(xlabel="layer", ylabel=label, ylim=(0, top or 1), xlim=(0.5, len(layers) + 0.5))
    handles = axes[-1].get_legend_handles_labels()
    canvas.legend(*handles, loc="outside lower left", ncols=2, fontsize=8, frameon=False)
    caption = (
        "Dots are heads; below the dashed line a head attends to nearer patches (left) or to fewer tokens "
        f"({'middle' if mass else 'right'}) than attention with equal scores"
        + (
            " under the same mask. Right: row sum after the mask, mean of all tokens; 1 where the mask takes nothing."
            if mass
            else "."
        )
    )
    alt = f"Attention distance{', entropy and row sums' if mass else ' and entropy'} of every head by layer"
    return Figure("attention_rows", svg_bytes(canvas), alt, caption)
