"""Pictures of what the class token looks at: its row of attention, laid on the patches."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from illama.report import svg_bytes
from illama.report.palette import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

PER_LINE, BLOCKS = 2, 3  # networks side by side, and maps of each
# Inches: a map, the gaps between maps and between networks, the words above and below a map, the scale on the right.
MAP, GAP, SPACE, ABOVE, BELOW, SCALE = 1.4, 0.1, 0.35, 0.62, 0.42, 0.95
TITLE_LETTERS = 48


@dataclass(frozen=True)
class ClassMaps:
    """One network.

    Attributes:
        title: What stands above its maps.
        attention_LN: The class token's row in every block, one head or a mean; its weight on itself stands last.
        grid: Rows and columns of patches, in raster order in the row.
    """

    title: str
    attention_LN: torch.Tensor
    grid: tuple[int, int]


def draw_class_maps(networks: Sequence[ClassMaps]) -> bytes:
    """First, middle and last block of every network on one scale, as SVG.

    Places are computed here: matplotlib's own layouts round differently from call to call, which shows in the bytes.
    """
    from matplotlib.figure import Figure

    largest = max(float(network.attention_LN[_shown(network), :-1].max()) for network in networks) or 1.0
    height = MAP * max(rows / columns for rows, columns in (network.grid for network in networks))
    lines, strip = math.ceil(len(networks) / PER_LINE), BLOCKS * MAP + (BLOCKS - 1) * GAP
    across = min(PER_LINE, len(networks))
    wide = across * strip + (across - 1) * SPACE + 2 * GAP + SCALE
    tall = lines * (ABOVE + height + BELOW) + GAP
    figure = Figure(figsize=(wide, tall))

    def place(left: float, top: float, width: float, height: float) -> Axes:
        return figure.add_axes((left / wide, 1 - (top + height) / tall, width / wide, height / tall))

    for index, network in enumerate(networks):
        line, column = divmod(index, PER_LINE)
        left = GAP + column * (strip + SPACE)
        top = line * (ABOVE + height + BELOW) + ABOVE
        title = "\n".join(textwrap.wrap(network.title, TITLE_LETTERS)[:2])
        figure.text(
            (left + strip / 2) / wide,
            1 - (top - 0.27) / tall,
            title,
            ha="center",
            va="bottom",
            fontsize=9,
            weight="bold",
            linespacing=1.0,
            parse_math=False,
        )
        for shown, block in enumerate(_shown(network)):
            image = _draw(place(left + shown * (MAP + GAP), top, MAP, height), network, block, largest)
    scale_height = min(2.5, 0.6 * tall)
    scale = place(wide - SCALE, (tall - scale_height) / 2, 0.14, scale_height)
    bar = figure.colorbar(image, cax=scale)
    bar.set_label("weight on a patch", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return svg_bytes(figure)


def _draw(ax: Axes, network: ClassMaps, block: int, largest: float) -> AxesImage:
    patches, own = network.attention_LN[block, :-1], float(network.attention_LN[block, -1])
    image = ax.imshow(
        patches.reshape(network.grid).numpy(), cmap="Blues", vmin=0, vmax=largest, interpolation="nearest"
    )
    if not patches.any():
        ax.text(0.5, 0.5, "no weight", transform=ax.transAxes, ha="center", va="center", fontsize=8, color=GREY)
    ax.set_title(f"block {block + 1}", fontsize=8, pad=3)
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(f"itself {_share(own)}\npatches {_share(float(patches.sum()))}", fontsize=8)
    return image


def _shown(network: ClassMaps) -> list[int]:
    """First, middle and last block."""
    depth = len(network.attention_LN)
    return sorted({0, depth // 2, depth - 1})


def _share(value: float) -> str:
    return "0" if value == 0 else f"{100 * value:.1f} %"
