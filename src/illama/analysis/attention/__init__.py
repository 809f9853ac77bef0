"""Rank, reach and direction of attention: by layer and head, and what the head of the network looks at (Fig. 4, 11)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from illama.analysis.attention.figures import Pictures, draw_heads, draw_layer_curves, draw_maps, draw_rows
from illama.analysis.attention.measures import (
    AttentionNumbers,
    attention_distance,
    indifferent_weights,
    measure_attention,
    row_entropy,
    row_mass,
)
from illama.analysis.report import AnalysisResult, Measure
from illama.console.progress import WorkProgress
from illama.errors import UserError
from illama.report import Block, Section, Table, Text, csv_text

if TYPE_CHECKING:
    from illama.analysis.registry import AttentionOptions
    from illama.evaluation.subject import Sample, Subject
    from illama.models import ILlama, ModelConfig

PUBLISHED_RANK = "about 129 (iLLaMA-T, ImageNet-1K, N = 197); 81 (ViT-T)"
PAPER_LAYERS = (1, 4, 8, 12)  # shown in Fig. 4, of twelve


def attention(subject: Subject, options: AttentionOptions, workspace: Path | None = None) -> AnalysisResult:
    """Look at the attention of randomly chosen images in one pass, at the network's own softness."""
    reason = why_not(subject, options)
    if reason is not None:
        raise UserError(reason)
    sample, config = subject.sample(options.images, options.seed), subject.model.config
    maps = len(sample.images) * config.depth * config.num_heads
    with WorkProgress("attention", maps, "maps") as progress:
        numbers = measure_attention(
            subject.model, sample.images, share=options.share, shown=options.shown, advance=progress.advance
        )
    return AnalysisResult(
        name="attention",
        summary=_summary(numbers, subject.model, options),
        section=Section("Attention", _blocks(subject, sample, numbers, options)),
        values=_values(subject.model, sample, numbers, options),
        tables={"attention.csv": _heads_csv(numbers), "attention_curves.csv": _curves_csv(numbers)},
    )


def why_not(subject: Subject, _: AttentionOptions) -> str | None:
    """Why attention cannot be looked at; None if it can."""
    return None if len(subject.source) else f"attention needs images; {subject.source.description} has none"


def shown_layers(depth: int) -> list[int]:
    """Indices of the layers whose curves are drawn: the paper's of twelve, else at most four, evenly spaced."""
    if depth == max(PAPER_LAYERS):
        return [layer - 1 for layer in PAPER_LAYERS]
    return sorted({round(i * (depth - 1) / 3) for i in range(4)})


def rows_sum_to_one(config: ModelConfig, softness: float) -> bool:
    """Whether the mask takes nothing from any row: there is none, it stands before the softmax, or it is all ones."""
    return config.mask == "none" or config.mask_mode == "pre_softmax" or softness == 1


def _summary(numbers: AttentionNumbers, model: ILlama, options: AttentionOptions) -> tuple[Measure, ...]:
    config = model.config
    tokens, depth = config.num_patches + 1, config.depth
    layers = "layer 1" if depth == 1 else f"layers 1 and {depth}"
    measures = [
        Measure(
            f"rank of attention, layer 1, head 1 (singular values that reach {100 * options.share:g} % of their sum)",
            f"{int(numbers.rank_Lh[0, 0])} of {tokens}",
            PUBLISHED_RANK if options.share == 0.8 else "",
        ),
        Measure(f"rank of attention, mean of the heads, {layers}", f"{_ends(numbers.rank_Lh)} of {tokens}"),
        Measure(f"mean attention distance, {layers}", f"{_ends(numbers.distance_Lh)} px"),
    ]
    if not rows_sum_to_one(config, float(model.softness)):
        row_sum = numbers.mass_Lh[0].mean().item()
        measures.append(Measure("attention row sum after the mask, layer 1 (mean)", f"{row_sum:.3f}"))
    return tuple(measures)


def _ends(numbers_Lh: torch.Tensor) -> str:
    """Means of the heads of the first and the last layer: "17.2 and 15.2"."""
    means = numbers_Lh.double().nanmean(1).tolist()
    return " and ".join(map(_number, means if len(means) == 1 else (means[0], means[-1])))


def _blocks(
    subject: Subject, sample: Sample, numbers: AttentionNumbers, options: AttentionOptions
) -> tuple[Block, ...]:
    model, config = subject.model, subject.model.config
    indifferent = indifferent_weights(model)
    baselines = (
        float(attention_distance(indifferent, config)),
        float(row_entropy(indifferent)),
        float(row_mass(indifferent)),
    )
    mass = not rows_sum_to_one(config, float(model.softness))
    blocks: list[Block] = [
        Text(_how(model, len(sample.images), options.seed)),
        draw_layer_curves(numbers, shown_layers(config.depth), options.share),
        draw_heads(numbers, options.share),
        draw_rows(numbers, baselines, mass=mass),
        _table(numbers, mass=mass),
    ]
    drawn = numbers.rollout_sN.shape[0]
    if drawn:
        blocks.append(draw_maps(Pictures.of(subject, sample, drawn), numbers, config))
    return tuple(blocks)


def _how(model: ILlama, images: int, seed: int) -> str:
    config, tokens = model.config, model.config.num_patches + 1
    masked = config.mask != "none"
    mask = f", mask {config.mask}, {config.mask_mode}, softness {float(model.softness):g}" if masked else ", no mask"
    weighed = "the mask and the softmax" if config.mask_mode == "pre_softmax" else "the softmax and the mask"
    rope = ("the rotary embedding" + (", " if masked else " and ")) if "rope" in config.position else ""
    after = rope + (weighed if masked else "the softmax")
    return (
        f"{images} images chosen at random (seed {seed}), all {config.depth} layers and {config.num_heads} heads"
        f"{mask}. An attention map is the {tokens} x {tokens} matrix that multiplies the values: after {after}. "
        "Attention distance is the distance from a patch to the patches that it attends to, "
        "weighted by attention; entropy is that of a row divided by its sum."
    )


def _table(numbers: AttentionNumbers, *, mass: bool) -> Table:
    rows = []
    for layer, ranks in enumerate(numbers.rank_Lh.tolist()):
        columns = (numbers.effective_rank_Lh, numbers.distance_Lh, numbers.entropy_Lh, numbers.mass_Lh)
        means = [float(column_Lh[layer].nanmean()) for column_Lh in columns]
        spread = f"{sum(ranks) / len(ranks):.1f} ({min(ranks)} to {max(ranks)})"
        rows.append((str(layer + 1), spread, *map(_number, means[:2]), f"{means[2]:.2f}", f"{means[3]:.3f}"))
    header = ("layer", "rank (range of heads)", "effective rank", "distance, px", "entropy, nats", "row sum")
    kept = len(header) if mass else len(header) - 1
    cut = tuple(row[:kept] for row in rows)
    return Table(header[:kept], cut, "Means over heads and images; attention.csv has every head.")


def _values(model: ILlama, sample: Sample, numbers: AttentionNumbers, options: AttentionOptions) -> dict[str, Any]:
    config = model.config
    return {
        "images": len(sample.images),
        "positions": sample.positions.tolist(),
        "seed": options.seed,
        "share": options.share,
        "tokens": config.num_patches + 1,
        "mask": config.mask,
        "mask_mode": config.mask_mode,
        "softness": float(model.softness),
        "rank": numbers.rank_Lh.tolist(),
        **_columns(numbers),
        "axes": "layers, then heads",
    }


def _columns(numbers: AttentionNumbers) -> dict[str, list[list[float | None]]]:
    """Plain numbers by layer and head; None for what does not exist."""
    columns = {
        "mean_rank_of_single_images": numbers.image_rank_Lh,
        "effective_rank": numbers.effective_rank_Lh,
        "distance_px": numbers.distance_Lh,
        "entropy_nats": numbers.entropy_Lh,
        "row_mass": numbers.mass_Lh,
    }
    return {
        name: [[None if math.isnan(value) else value for value in row] for row in numbers_Lh.tolist()]
        for name, numbers_Lh in columns.items()
    }


def _heads_csv(numbers: AttentionNumbers) -> str:
    columns = _columns(numbers)
    rows = [
        (layer + 1, head + 1, rank, *(column[layer][head] for column in columns.values()))
        for layer, ranks in enumerate(numbers.rank_Lh.tolist())
        for head, rank in enumerate(ranks)
    ]
    return csv_text(("layer", "head", "rank", *columns), rows)


def _curves_csv(numbers: AttentionNumbers) -> str:
    """The curves that are drawn, to six digits: one line per layer and number of singular values."""
    heads = numbers.rank_Lh.shape[1]
    rows = [
        (layer + 1, count, *(f"{share:.6g}" for share in shares_h))
        for layer in shown_layers(len(numbers.rank_Lh))
        for count, shares_h in enumerate(numbers.curves_LhN[layer].T.tolist(), start=1)
    ]
    return csv_text(("layer", "singular_values", *(f"head_{head + 1}" for head in range(heads))), rows)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
