"""Where the arithmetic of a prediction goes, as stacked bars."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from illama.models.config import ModelConfig
from illama.models.cost import multiply_add_parts, needed_parts, peer_config
from illama.models.variants import VARIANTS
from illama.report import Figure, svg_bytes
from illama.report.palette import BLUE, GREY, ORANGE, PURPLE, SKY, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLORS = {
    "patch embedding": GREY,
    "projections": BLUE,
    "scores": ORANGE,
    "weighted values": YELLOW,
    "feed-forward": SKY,
    "head": PURPLE,
}


def arithmetic_figure() -> Figure:
    """Per size and image size three bars: a ViT, and what each mask mode needs, in percent of the ViT."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(10, 5.2), layout="constrained")
    panels = canvas.subplots(1, 2, sharey=True)
    for axes, px in zip(panels, (224, 384), strict=True):
        ticks = []
        for group, (name, variant) in enumerate(VARIANTS.items()):
            for bar, (label, parts) in enumerate(_bars(dataclasses.replace(variant, img_size=px)).items()):
                place = 4 * group + bar
                ticks.append((place, f"{name}   {label}" if bar == 0 else label))
                _stack(axes, place, parts)
        axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
        axes.set_xlim(0, 112)
        axes.set_xlabel("multiply-adds, % of a ViT of the same size")
        axes.set_title(f"{px} px")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    handles = [panels[0].barh(0, 0, color=color, label=part) for part, color in _COLORS.items()]
    canvas.legend(handles=handles, loc="outside lower center", ncols=len(_COLORS), frameon=False, fontsize=9)
    return Figure(
        "arithmetic",
        svg_bytes(canvas),
        "Stacked bars of multiply-adds by part of the network for a ViT and for iLLaMA under both mask modes",
        "Where the arithmetic of one prediction at softness 0 goes. ViT computes everything; the others only what the "
        "logits need. The head is there, and too small to be seen.",
    )


def _bars(config: ModelConfig) -> dict[str, dict[str, float]]:
    """Label -> part -> percent of what a ViT of the same size computes."""
    vit = multiply_add_parts(peer_config(config))
    counts = {"ViT": vit} | {
        mode: needed_parts(dataclasses.replace(config, mask_mode=mode)) for mode in ("post_softmax", "pre_softmax")
    }
    whole = sum(vit.values())
    return {label: {part: 100 * n / whole for part, n in parts.items()} for label, parts in counts.items()}


def _stack(axes: Axes, place: int, parts: dict[str, float]) -> None:
    left = 0.0
    for part, percent in parts.items():
        axes.barh(place, percent, 0.85, left=left, color=_COLORS[part])
        left += percent
    axes.annotate(f"{left:.1f}", (left, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
