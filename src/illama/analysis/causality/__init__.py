"""The causality probe: does what a network makes of a token depend on what comes after it, since when, how much."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from illama.analysis.causality.sensitivity import changes_before_cuts, exchanged, followed_tokens
from illama.analysis.report import AnalysisResult, Measure, canvas, layers_along
from illama.console.progress import WorkProgress
from illama.errors import UserError
from illama.report import Block, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from illama.analysis.registry import CausalityOptions
    from illama.evaluation.subject import Subject
    from illama.models import ILlama

# Above this many parameters the copy in double precision would take more than a gigabyte.
MOST_DOUBLE = 1 << 27
FLOOR, CEILING = -16, 0  # decades shown where nothing moved
ZERO_COLOR, EXCHANGED_COLOR = "#D6EAF8", "#EEEEEE"


@dataclass(frozen=True)
class LayerLeak:
    """How earlier tokens have moved behind one layer, over images and cuts.

    Attributes:
        earlier: Tokens looked at: those up to the cut, for every image and cut.
        moved: How many of them changed at all.
        median: Median of the relative changes of those that moved; 0 where none did.
        largest: The largest relative change.
        quantiles: Relative changes that 10, 50 and 90 % of all looked at stay below.
    """

    earlier: int
    moved: int
    median: float
    largest: float
    quantiles: tuple[float, float, float]

    @classmethod
    def of(cls, changes: torch.Tensor) -> LayerLeak:
        """That of relative changes in any shape."""
        flat = changes.flatten().double().numpy()
        moved = flat[flat > 0]
        low, middle, high = np.quantile(flat, (0.1, 0.5, 0.9)).tolist()
        median = float(np.median(moved)) if len(moved) else 0.0
        return cls(len(flat), len(moved), median, float(flat.max()), (low, middle, high))


class _How(NamedTuple):
    """Images, exchanges that changed nothing, and the precision of the numbers."""

    images: int
    alike: int
    precision: str


def causality(subject: Subject, options: CausalityOptions, workspace: Path | None = None) -> AnalysisResult:
    """Exchange all patches after a cut for another image's and report how every earlier token moves in every layer.

    A strictly causal network keeps every earlier token to the last bit, in every precision. How much others move is
    measured on a copy in double precision, with the backend that serves it fastest (in float32 above `MOST_DOUBLE`
    parameters), for a leak may be fainter than what float32 resolves.
    """
    reason = why_not(subject, options)
    if reason is not None:
        raise UserError(reason)
    images = subject.sample(options.images, options.seed).images
    if len(images) < 2:
        raise UserError(f"{subject.source.description}: the probe needs two readable images; there is one")
    model = exact_copy(subject.model)
    exact = next(model.parameters())
    cuts = spread(followed_tokens(model.config), options.cuts)
    differs = exchanged(images, model.config, cuts)
    if not differs.any():
        raise UserError(
            f"{subject.source.description}: the images chosen are the same; causality needs images that differ"
        )
    with WorkProgress("exchanging later patches", len(cuts) * len(images), "exchanges") as progress:
        changes = changes_before_cuts(model, images.to(exact), cuts, progress.advance)
    if not all(changes_LBt.isfinite().all() for changes_LBt in changes):
        raise UserError("some tokens are not finite; use weights from before the training diverged")
    alike = int((~differs).sum())
    changes = [changes_LBt[:, pairs] for changes_LBt, pairs in zip(changes, differs, strict=True) if pairs.any()]
    cuts = [cut for cut, pairs in zip(cuts, differs, strict=True) if pairs.any()]
    layers = [
        LayerLeak.of(torch.cat([changes_LBt[layer].flatten() for changes_LBt in changes]))
        for layer in range(len(changes[0]))
    ]
    verdict = describe(model, layers)
    how = _How(len(images), alike, "double precision" if exact.dtype == torch.float64 else "float32")
    by_layer = [
        (cut, index, leak.earlier, leak.moved, leak.median, leak.largest)
        for cut, changes_LBt in zip(cuts, changes, strict=True)
        for index, leak in enumerate(map(LayerLeak.of, changes_LBt), start=1)
    ]
    by_token = [
        (cut, token, change)
        for cut, changes_LBt in zip(cuts, changes, strict=True)
        for token, change in enumerate(changes_LBt[-1].mean(0).tolist())
    ]
    return AnalysisResult(
        name="causality",
        summary=(Measure("dependence of earlier tokens on later patches", verdict),),
        section=Section("Causality", _blocks(changes, cuts, layers, verdict, how)),
        values={
            "verdict": verdict,
            "strictly_causal": not any(layer.moved for layer in layers),
            "mask": model.config.mask,
            "mask_mode": model.config.mask_mode,
            "softness": float(model.softness),
            "precision": how.precision,
            "images": how.images,
            "exchanges_left_out": how.alike,
            "cuts": list(cuts),
            "layers": [
                {"layer": index, **dataclasses.asdict(layer), "quantiles": list(layer.quantiles)}
                for index, layer in enumerate(layers, start=1)
            ],
        },
        tables={
            "causality.csv": csv_text(
                ("cut_token", "layer", "earlier_tokens", "moved", "median_of_moved", "largest"), by_layer
            ),
            "causality_tokens.csv": csv_text(
                ("cut_token", "token", "mean_relative_change_after_the_last_layer"), by_token
            ),
        },
    )


def why_not(subject: Subject, _: CausalityOptions) -> str | None:
    """Why the probe cannot be made; None if it can."""
    if len(subject.source) < 2:
        return f"causality needs at least two images; {subject.source.description} has {len(subject.source)}"
    if followed_tokens(subject.model.config) < 1:
        return "causality needs a token that a patch follows; this network has a single patch"
    return None


def exact_copy(model: ILlama) -> ILlama:
    """The network in double precision on its device (the CPU where there is none), with the backend left open.

    Above `MOST_DOUBLE` parameters: the same in float32.
    """
    double = sum(parameter.numel() for parameter in model.parameters()) <= MOST_DOUBLE
    device = next(model.parameters()).device
    copied = copy.deepcopy(model).to("cpu" if double and device.type == "mps" else device)
    copied = copied.to(torch.float64 if double else torch.float32)
    blocks: list[Any] = list(copied.blocks)
    for block in blocks:
        block.attn.config = dataclasses.replace(block.attn.config, attention_backend="auto")
    return copied


def spread(places: int, count: int) -> list[int]:
    """The middles of `count` equal parts of the numbers 0 to places - 1; all of them where there are no more."""
    count = min(places, count)
    return [(2 * part + 1) * places // (2 * count) for part in range(count)]


def describe(model: ILlama, layers: Sequence[LayerLeak]) -> str:
    """One sentence for what `layers` show: whether the network is causal, and how earlier tokens are reached if not."""
    config, softness, last = model.config, float(model.softness), layers[-1]
    first = next((index for index, layer in enumerate(layers, start=1) if layer.moved), None)
    if first is None:
        return "strictly causal: no earlier token changed by a single bit"
    if config.mask == "none":
        way = "bidirectional"
    elif softness > 0:
        way = f"not causal at softness {softness:.3g}"
    else:
        ways = ["the softmax denominator"] if config.mask_mode == "post_softmax" else []
        ways += ["the unmasked row of the first token"] if config.mask == "modified_causal" else []
        way = f"leaks through {' and '.join(ways) or 'a mask that should be strict'}"
    return (
        f"{way}: {last.moved:,} of {last.earlier:,} earlier tokens changed, median relative change "
        f"{percent_text(last.median)}, largest {percent_text(last.largest)}, from layer {first} on"
    )


def percent_text(change: float) -> str:
    """A relative change for people: "2.7 %", or "3.1e-09" where percent would be all zeros."""
    if change < 1e-6:
        return "exactly 0" if change == 0 else f"{change:.2g}"
    hundredths = 100 * change
    return f"{hundredths:.0f} %" if hundredths >= 10 else f"{hundredths:.2g} %"


def _blocks(
    changes: Sequence[torch.Tensor],
    cuts: Sequence[int],
    layers: Sequence[LayerLeak],
    verdict: str,
    how: _How,
) -> tuple[Block, ...]:
    rows = tuple(
        (str(index), f"{layer.moved:,} of {layer.earlier:,}", percent_text(layer.median), percent_text(layer.largest))
        for index, layer in enumerate(layers, start=1)
    )
    what = (
        f"Everything after a cut comes from another image; the tokens up to the cut are compared with those of the "
        f"untouched image. The relative change is the norm of a token's change divided by the token's norm. "
        f"{how.images} images, {len(cuts)} cuts, {how.precision}."
    )
    if how.alike:
        what += f" {how.alike} of the exchanges are left out, for both pictures are the same after the cut."
    header = ("layer", "earlier tokens that changed", "their median relative change", "largest relative change")
    return (
        Text(f"**{verdict[0].upper()}{verdict[1:]}.**"),
        Text(what),
        draw_leak(changes, cuts, layers),
        Table(header, rows, "Relative change (change / the token's norm) of earlier tokens, over images and cuts."),
    )


def draw_leak(changes: Sequence[torch.Tensor], cuts: Sequence[int], layers: Sequence[LayerLeak]) -> Figure:
    """How earlier tokens move by layer, and each of them behind the last layer, of changes (L, n, cut + 1) by cut."""
    figure = canvas(10.5, 4.1)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    _draw_layers(left, layers)
    _draw_tokens(right, changes, cuts)
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8, frameon=False)
    strict = not any(layer.moved for layer in layers)
    caption = (
        "Left: the lower a point, the less do earlier tokens change when later patches are exchanged; at the bottom "
        "they do not change by a single bit. Right: each row is one cut, and its cells are the relative changes of the "
        "earlier tokens after the last layer, mean of the images."
    )
    alt = "No earlier token changes" if strict else f"Earlier tokens change by up to {layers[-1].largest:.2g}"
    return Figure("causality", svg_bytes(figure), f"{alt} when later patches are exchanged", caption)


def _draw_layers(ax: Axes, layers: Sequence[LayerLeak]) -> None:
    largest = [layer.largest for layer in layers]
    nonzero = [value for layer in layers for value in (*layer.quantiles, layer.largest) if value > 0]
    low = int(np.floor(np.log10(min(nonzero)))) if nonzero else FLOOR
    high = int(np.ceil(np.log10(max(nonzero)))) if nonzero else CEILING
    zero = low - max(1.0, 0.08 * (high - low))

    def height(values: Sequence[float]) -> list[float]:
        return [float(np.log10(value)) if value > 0 else zero for value in values]

    numbers = layers_along(ax, len(layers))
    below, middle, above = (height(column) for column in zip(*(layer.quantiles for layer in layers), strict=True))
    ax.fill_between(numbers, below, above, color=BLUE, alpha=0.2, linewidth=0, label="10 to 90 % of the tokens")
    ax.plot(numbers, middle, color=BLUE, marker="o", markersize=4, label="median")
    ax.plot(numbers, height(largest), color=ORANGE, marker="^", markersize=4, linestyle="--", label="largest")
    ax.axhline(zero, color=GREY, linewidth=0.8, zorder=0)
    step = max(1, -(-(high - low) // 6))
    decades = list(range(high, low - 1, -step))
    ax.set_yticks([zero, *decades], ["exactly 0", *(f"$10^{{{decade}}}$" for decade in decades)])
    ax.set(ylim=(zero - 0.06 * (high - zero), high + 0.03 * (high - zero)), ylabel="relative change (change / norm)")
    ax.set_title("later patches exchanged: earlier tokens by layer", fontsize=10)


def _draw_tokens(ax: Axes, changes: Sequence[torch.Tensor], cuts: Sequence[int]) -> None:
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Patch

    cells = np.full((len(cuts), cuts[-1] + 2), np.nan)
    for row, changes_LBt in zip(cells, changes, strict=True):
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
