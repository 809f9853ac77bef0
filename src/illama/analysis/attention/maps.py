"""Pictures of what the head of a network looks at: single layers, and rollout through all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from illama.analysis.attention.rollout import on_grid
from illama.report import Figure, svg_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

    from illama.analysis.attention.measures import AttentionNumbers
    from illama.evaluation.subject import Sample, Subject
    from illama.models import ModelConfig

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
        labels = [_name(subject, int(label)) for label in sample.labels[:count]]
        channels_last = pixels.permute(0, 2, 3, 1).numpy()
        return cls(channels_last if channels_last.shape[-1] == 3 else channels_last[..., 0], tuple(labels))


def draw_maps(pictures: Pictures, found: AttentionNumbers, config: ModelConfig) -> Figure:
    """First, middle and last layer and the rollout of some images, each beside its image.

    Args:
        pictures: The images.
        found: Rows and rollout of the same images.
        config: The network's, which knows the grid.
    """
    from matplotlib.figure import Figure as Canvas

    layers = sorted({0, config.depth // 2, config.depth - 1})
    columns = [(f"layer {layer + 1}", found.rows_LsN[layer]) for layer in layers]
    columns.append((f"rollout, {config.depth} layers", found.rollout_sN))
    count, (height, width) = len(pictures.titles), config.height_width
    cell = CELL * min(2.0, max(0.5, height / width))
    canvas = Canvas(figsize=((1 + len(columns)) * CELL + 1.0, count * (cell + 0.32) + 0.4), layout="constrained")
    axes = canvas.subplots(count, 1 + len(columns), squeeze=False)
    for row, title in enumerate(pictures.titles):
        _draw_picture(axes[row, 0], pictures.pixels[row], title)
        for ax, (name, rows_sN) in zip(axes[row, 1:], columns, strict=True):
            shown = _draw_map(ax, pictures.pixels[row], rows_sN[row : row + 1], config)
            if row == 0:
                ax.set_title(name, fontsize=9)
    bar = canvas.colorbar(shown, ax=axes, shrink=min(1.0, 3 / count), fraction=0.03)
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
    return Figure("attention_maps", svg_bytes(canvas), f"What {reader} looks at in {count} images", caption)


def _draw_picture(ax: Axes, pixels: npt.NDArray[np.float32], title: str) -> None:
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel(title if len(title) <= 20 else f"{title[:19]}…", fontsize=8, parse_math=False)


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


def _name(subject: Subject, label: int) -> str:
    """A label for people: the class's name in the data, or its number."""
    names = subject.source.classes
    return names[label] if 0 <= label < len(names) else str(label)
