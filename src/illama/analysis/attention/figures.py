"""Pictures of attention: curves of singular values, ranks of all heads, maps of single layers and of rollout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from illama.analysis.attention.measures import on_grid
from illama.analysis.report import canvas, layers_along
from illama.report import Figure, svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from illama.analysis.attention.measures import AttentionNumbers
    from illama.evaluation.subject import Sample, Subject
    from illama.models import ModelConfig

MOST_POINTS = 200  # of a curve; more cannot be told apart at the width of a page
MOST_CELLS = 16 * 16  # of the table of ranks that numbers fit into


def draw_layer_curves(numbers: AttentionNumbers, layers: Sequence[int], share: float) -> Figure:
    """The paper's Fig. 4 for all heads of some layers.

    Args:
        numbers: Those of the network.
        layers: Indices of the layers.
        share: Where the rank is read off.
    """
    tokens = numbers.curves_LhN.shape[-1]
    figure = canvas(max(4.5, 2.7 * len(layers)), 2.9)
    for ax, layer in zip(figure.subplots(1, len(layers), sharey=True, squeeze=False)[0], layers, strict=True):
        _draw_layer(ax, numbers.curves_LhN[layer], numbers.rank_Lh[layer], share)
        ax.set_title(f"layer {layer + 1}", fontsize=10)
        ax.set(xlabel="singular values", xlim=(0, tokens), ylim=(0, 1.03))
        if layer == layers[0]:
            ax.set_ylabel("share of their sum")
            ax.legend(fontsize=8, frameon=False, loc="lower right")
    first = int(numbers.rank_Lh[0, 0])
    caption = (
        "The later a curve reaches the dashed line, the higher the rank of the attention map: so many singular values "
        f"reach {100 * share:g} % of their sum. One grey line per head, the first head in orange with its rank, blue "
        "the mean of the heads; mean of the images."
    )
    alt = f"Cumulated singular values of attention maps; layer 1, head 1 reaches {100 * share:g} % at {first}"
    return Figure("attention_rank", svg_bytes(figure), alt, caption)


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


def draw_heads(numbers: AttentionNumbers, share: float) -> Figure:
    """The rank of every head of every layer."""
    ranks_hL, tokens = numbers.rank_Lh.T, numbers.curves_LhN.shape[-1]
    heads, layers = ranks_hL.shape
    figure = canvas(max(4.5, min(11.0, 2.4 + 0.55 * layers)), max(2.4, 1.1 + 0.3 * heads))
    ax = figure.subplots()
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
    figure.colorbar(image, ax=ax, label=f"rank, of {tokens} tokens")
    caption = (
        f"The brighter a cell, the more singular values that head's attention needs for {100 * share:g} % of their sum"
        f"{'; the number is how many' if numbered else ''}. Ranks are those of the mean curve of all images."
    )
    low, high = int(ranks_hL.min()), int(ranks_hL.max())
    alt = f"Rank of attention by layer and head: {low} to {high} of {tokens}"
    return Figure("attention_heads", svg_bytes(figure), alt, caption)


def draw_rows(numbers: AttentionNumbers, indifferent: Sequence[float], *, mass: bool) -> Figure:
    """Distance, entropy and row sums of every head.

    Args:
        numbers: Those of the network.
        indifferent: The same three numbers of attention that does not look: equal scores under the network's mask.
        mass: Whether row sums are drawn; without a mask behind the softmax all are 1.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [(numbers.distance_Lh, "mean attention distance, px"), (numbers.entropy_Lh, "entropy of a row, nats")]
    if mass:
        panels.append((numbers.mass_Lh, "row sum after the mask"))
    figure = canvas(3.5 * len(panels), 3.4, ConstrainedLayoutEngine(w_pad=0.1))
    axes = figure.subplots(1, len(panels))
    for ax, (numbers_Lh, label), even in zip(axes, panels, indifferent, strict=False):
        layers = layers_along(ax, len(numbers_Lh))
        for head_L in numbers_Lh.T:
            ax.plot(layers, head_L, color=BLUE, marker="o", markersize=4, linestyle="none", alpha=0.55)
        ax.plot(layers, numbers_Lh.nanmean(1), color=ORANGE, linewidth=1.6, label="mean of the heads")
        ax.axhline(even, color=GREY, linestyle="--", linewidth=1, label="equal scores")
        top = 1.08 * max(even, float(numbers_Lh.nan_to_num().max()))
        ax.set(ylabel=label, ylim=(0, top or 1))
    handles = axes[-1].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower left", ncols=2, fontsize=8, frameon=False)
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
    return Figure("attention_rows", svg_bytes(figure), alt, caption)


# Of a picture, and of the veil that lies over each map: all their bytes stand in the page.
LONGEST_PX, VEIL_LEVELS = 64, 12
CELL = 1.45  # inches
NOTHING = 1e-12  # of a weight on all patches: rounding


@dataclass(frozen=True)
class Pictures:
    """Images to draw on.

    Attributes:
        pixels: (s, H, W) grey or (s, H, W, 3), 0 to 1.
        titles: What stands beside each.
    """

    pixels: npt.NDArray[np.float32]
    titles: tuple[str, ...]

    @classmethod
    def of(cls, subject: Subject, sample: Sample, count: int) -> Pictures:
        """The first images of a sample as people see them, made small."""
        transform, images = subject.transform, sample.images[:count].float().cpu()
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (transform.mean, transform.std))
        pixels = (images * std + mean).clamp(0, 1)
        longest = max(pixels.shape[-2:])
        if longest > LONGEST_PX:
            pixels = F.interpolate(pixels, scale_factor=LONGEST_PX / longest, mode="area")
        names = subject.source.classes
        labels = [names[i] if 0 <= i < len(names) else str(i) for i in sample.labels[:count].tolist()]
        channels_last = pixels.permute(0, 2, 3, 1).numpy()
        return cls(channels_last if channels_last.shape[-1] == 3 else channels_last[..., 0], tuple(labels))


def draw_maps(pictures: Pictures, numbers: AttentionNumbers, config: ModelConfig) -> Figure:
    """First, middle and last layer and the rollout of some images, each beside its image.

    Args:
        pictures: The images.
        numbers: Rows and rollout of the same images.
        config: The network's, which knows the grid.
    """
    layers = sorted({0, config.depth // 2, config.depth - 1})
    columns = [(f"layer {layer + 1}", numbers.rows_LsN[layer]) for layer in layers]
    columns.append((f"rollout, {config.depth} layers", numbers.rollout_sN))
    count, (height, width) = len(pictures.titles), config.height_width
    cell = CELL * min(2.0, max(0.5, height / width))
    figure = canvas((1 + len(columns)) * CELL + 1.0, count * (cell + 0.32) + 0.4)
    axes = figure.subplots(count, 1 + len(columns), squeeze=False)
    for row, title in enumerate(pictures.titles):
        axes[row, 0].imshow(pictures.pixels[row], cmap="gray", vmin=0, vmax=1, interpolation="none")
        axes[row, 0].set(xticks=[], yticks=[])
        axes[row, 0].set_xlabel(title if len(title) <= 20 else f"{title[:19]}…", fontsize=8, parse_math=False)
        for ax, (name, rows_sN) in zip(axes[row, 1:], columns, strict=True):
            shown = _draw_map(ax, pictures.pixels[row], rows_sN[row : row + 1], config)
            if row == 0:
                ax.set_title(name, fontsize=9)
    bar = figure.colorbar(shown, ax=axes, shrink=min(1.0, 3 / count), fraction=0.03)
    bar.set_label("weight on a patch / largest of the picture", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    reads = {"token": "the class token", "avg": "the mean of the patches", "": "the mean of all tokens"}
    reader = reads[config.global_pool]
    gathers = (
        "; under a causal mask it gathers at the first patches, for all others attend to them"
        if config.mask != "none"
        else ""
    )
    caption = (
        f"The brighter a patch, the more {reader} takes from it; each map is scaled to its own largest weight. Below a "
        "map: the share of the row's weight that falls on patches, and that largest weight as a multiple of an even "
        f"spread. Layers are means of the heads. Rollout follows weights and residuals through all layers{gathers}."
    )
    return Figure("attention_maps", svg_bytes(figure), f"What {reader} looks at in {count} images", caption)


def _draw_map(ax: Axes, pixels: npt.NDArray[np.float32], row_1N: torch.Tensor, config: ModelConfig) -> AxesImage:
    """A map under a veil of its picture in grey."""
    weights = on_grid(row_1N, config)[0].double().numpy()
    total = float(row_1N.sum())
    on_patches, largest = float(weights.sum()), float(weights.max())
    seen = on_patches > NOTHING * total
    colored = ax.imshow(
        weights / largest if seen else np.zeros_like(weights),
        cmap="inferno",
        vmin=0,
        vmax=1,
        interpolation="none",
        extent=(0, pixels.shape[1], pixels.shape[0], 0),
    )
    grey = pixels if pixels.ndim == 2 else pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    veil = np.zeros((*grey.shape, 4), dtype=np.float32)
    veil[..., :3], veil[..., 3] = np.round(grey * VEIL_LEVELS)[..., None] / VEIL_LEVELS, 0.35
    ax.imshow(veil, interpolation="none", extent=(0, pixels.shape[1], pixels.shape[0], 0))
    ax.set(xticks=[], yticks=[])
    share = f"{100 * on_patches / total:.0f} %" if total > 0 else "0"
    times = f", {largest * weights.size / on_patches:.1f} x" if seen and math.isfinite(largest) else ""
    ax.set_xlabel(f"{share}{times}" if seen else "no weight on patches", fontsize=8)
    return colored
