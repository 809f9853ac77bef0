"""Shape or texture (Table 8, Fig. 8): a network's decisions on cue-conflict pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from illama.analysis.imagenet_answers import answers, not_imagenet
from illama.analysis.options import ShapeOptions
from illama.analysis.result import AnalysisResult, Measure
from illama.analysis.shape.measures import CueConflictSource, ShapeBias, decisions, open_cue_conflict, shape_bias
from illama.errors import UserError
from illama.evaluation.statistics import wilson
from illama.evaluation.subject import Subject
from illama.report import Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from illama.system.given_file import at_home

PUBLISHED = "41.45 % (iLLaMA-B, ImageNet-1K)"
MARKERS = "osD^vP"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
HEADER = ("shape category", "shape decisions", "texture decisions", "other decisions", "shape bias")
ABOUT = (
    "Each picture shows the shape of one category in the texture of another ([Geirhos et al., "
    "2019](https://arxiv.org/abs/1811.12231)). The network's 1000 probabilities are averaged within each of 16 "
    "categories, and the largest average is its decision. **Shape bias** is the share of shape decisions among those "
    "for the shape or the texture; decisions for a third category count neither way, nor do pictures without "
    "a conflict."
)


def why_not(subject: Subject, options: ShapeOptions) -> str | None:
    """Why this cannot be done for this network, in one line; None if it can."""
    if options.cue_conflict is None:
        return "no cue-conflict pictures are given; add --cue-conflict FOLDER (in a report: shape.cue_conflict=FOLDER)"
    return not_imagenet(subject)


def shape(subject: Subject, options: ShapeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Shape bias of a network with ImageNet-1K's classes.

    Args:
        subject: The network; its own images are not looked at.
        options: Where the pictures are.
        workspace: Not needed: 1,280 pictures are one short pass.

    Raises:
        UserError: The folder or the network does not fit, or no decision was for a shape or a texture.
    """
    problem = why_not(subject, options)
    if problem is not None or options.cue_conflict is None:
        raise UserError(f"shape bias cannot be measured: {problem}")
    source = open_cue_conflict(at_home(options.cue_conflict), subject.meta.config.in_chans)
    found = answers(subject, source)
    bias = shape_bias(decisions(found.logits), found.labels, torch.from_numpy(source.textures)[found.positions])
    return finding(bias, source, found.skipped)


def finding(bias: ShapeBias, source: CueConflictSource, skipped: int) -> AnalysisResult:
    """Numbers, table and figure of counted decisions."""
    low, high = wilson(sum(bias.shape), bias.decided)
    counts = f"{sum(bias.shape)} shape and {sum(bias.texture)} texture decisions"
    within = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    summary = (
        Measure("shape bias", f"{100 * bias.bias:.2f} % ({counts}; {within})", PUBLISHED),
        Measure("cue conflict: shape recognised", f"{100 * bias.shape_accuracy:.1f} % of {bias.images} images"),
        Measure("cue conflict: texture recognised", f"{100 * bias.texture_accuracy:.1f} % of {bias.images} images"),
    )
    left_out = f"{bias.without_conflict} images without a conflict are left out; {skipped} could not be read."
    table = Table(HEADER, (*map(_cells, rows(bias)), _cells(_total(bias))), f"Decisions by category. {left_out}")
    picture = Figure(
        "shape_bias",
        draw({"this network": bias}),
        f"Shape bias of 16 categories, on average {100 * bias.bias:.1f} %",
        "The further left a dot, the more often the shape decides for pictures of that shape category; the dashed line "
        "is the share over all pictures. A category without a dot had no decision for its shape or the texture.",
    )
    return AnalysisResult(
        "shape",
        summary,
        Section("Shape or texture", (Text(ABOUT), Text(f"Images: {source.description}."), picture, table)),
        _values(bias, source, skipped, (low, high)),
        {"shape_bias.csv": csv_text(HEADER, (*rows(bias), _total(bias)))},
    )


def rows(bias: ShapeBias) -> list[tuple[str, int, int, int, float | None]]:
    """One row per shape category under `HEADER`; the bias is None where no decision was for shape or texture."""
    return list(zip(bias.categories, bias.shape, bias.texture, bias.other, bias.by_category, strict=True))


def _total(bias: ShapeBias) -> tuple[str, int, int, int, float]:
    return "all", sum(bias.shape), sum(bias.texture), sum(bias.other), bias.bias


def _cells(row: tuple[str, int, int, int, float | None]) -> tuple[str, ...]:
    name, *counts, share = row
    return (name, *map(str, counts), "none decided" if share is None else f"{100 * share:.1f} %")


def _values(bias: ShapeBias, source: CueConflictSource, skipped: int, within: tuple[float, float]) -> dict[str, Any]:
    by_category = {
        name: {"shape": by_shape, "texture": by_texture, "other": other, "shape_bias": share}
        for name, by_shape, by_texture, other, share in rows(bias)
    }
    return {
        "data": source.description,
        "shape_bias": bias.bias,
        "shape_bias_interval": list(within),
        "shape_accuracy": bias.shape_accuracy,
        "texture_accuracy": bias.texture_accuracy,
        "images_with_conflict": bias.images,
        "images_without_conflict": bias.without_conflict,
        "skipped": skipped,
        "by_category": by_category,
    }


def draw(networks: Mapping[str, ShapeBias]) -> bytes:
    """The paper's Fig. 8 as SVG: a dot per category and network, a dashed line at each network's average.

    Args:
        networks: Name -> its decisions.

    Raises:
        ValueError: There are more networks than can be told apart.
    """
    from matplotlib.figure import Figure as Canvas

    if not 1 <= len(networks) <= len(MARKERS):
        raise ValueError(f"the figure shows 1 to {len(MARKERS)} networks; got {len(networks)}")
    categories = next(iter(networks.values())).categories
    canvas = Canvas(figsize=(7.2, 6.0), layout="constrained")
    axes = canvas.subplots()
    for number, (name, bias) in enumerate(networks.items()):
        colour, marker = COLOURS[number], MARKERS[number]
        shift = (number - (len(networks) - 1) / 2) * 0.6 / len(networks)  # equal shares would hide each other
        dots = [(share, place + shift) for place, share in enumerate(bias.by_category) if share is not None]
        label = f"{name}, average {bias.bias:.2f}"
        axes.axvline(bias.bias, color=colour, linestyle="--", linewidth=1.4)
        shares, places = zip(*dots, strict=True)
        axes.scatter(shares, places, s=62, color=colour, marker=marker, label=label, zorder=3, clip_on=False)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(1, 0)
    axes.set_xlabel("fraction of shape decisions")
    axes.set_ylabel("category of the shape")
    upper = axes.secondary_xaxis("top", functions=(_complement, _complement))
    upper.set_xlabel("fraction of texture decisions")
    axes.grid(axis="both", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    canvas.legend(loc="outside lower center", ncols=min(3, len(networks)), frameon=False)
    return svg_bytes(canvas)


def _complement(share: Any) -> Any:
    return 1 - share
