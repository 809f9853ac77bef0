"""The study `complexity`: counted parameters and multiply-adds beside the paper's Tables 2, 6 and 11. No torch here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Any

from illama.models.config import MaskMode, ModelConfig
from illama.models.cost import (
    attention_multiply_adds,
    counted_multiply_adds,
    counted_parameters,
    multiply_add_parts,
    multiply_adds,
    needed_multiply_adds,
    needed_parts,
    parameters,
    peer_config,
)
from illama.models.variants import VARIANTS, roadmap_config
from illama.report import Figure, Section, Table, Text, svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE, PURPLE, SKY, YELLOW

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MILLION, BILLION = 10**6, 10**9


@dataclass(frozen=True)
class PublishedCost:
    """A row of Tables 6 and 11, as printed, beside the configuration that it is printed for.

    Attributes:
        model: How the paper calls it.
        data: What it was trained on.
        config: The network.
        parameters: In millions, digit for digit.
        multiply_adds: In billions, digit for digit; None where the paper prints none.
        images_per_s: On an A100, batch 1024; None where the paper prints none.
    """

    model: str
    data: str
    config: ModelConfig
    parameters: str
    multiply_adds: str | None
    images_per_s: int | None


def _illama(variant: str, px: int) -> ModelConfig:
    return dataclasses.replace(VARIANTS[variant], img_size=px)


def _vit(variant: str, px: int) -> ModelConfig:
    return roadmap_config("vit", variant, img_size=px)


_BOTH = "in21k, in1k"
PUBLISHED = (
    PublishedCost("iLLaMA-T", "in1k", _illama("tiny", 224), "5.7", "1.3", 6958),
    PublishedCost("iLLaMA-S", "in1k", _illama("small", 224), "21.9", "4.6", 3222),
    PublishedCost("iLLaMA-B", "in1k", _illama("base", 224), "86.3", "17.6", 1345),
    PublishedCost("iLLaMA-B", "in1k", _illama("base", 384), "86.3", "55.5", 332),
    PublishedCost("iLLaMA-B", _BOTH, _illama("base", 224), "86.3", "17.6", 1345),
    PublishedCost("iLLaMA-B", _BOTH, _illama("base", 384), "86.3", "55.5", 332),
    PublishedCost("iLLaMA-L", _BOTH, _illama("large", 224), "310.2", "62.8", 456),
    PublishedCost("iLLaMA-L", _BOTH, _illama("large", 384), "310.2", "194.7", 116),
    PublishedCost("DeiT-Ti", "in1k", _vit("tiny", 224), "5.7", "1.3", 6051),
    PublishedCost("DeiT-S", "in1k", _vit("small", 224), "22.1", "4.6", 3080),
    PublishedCost("DeiT-B", "in1k", _vit("base", 224), "86.4", "17.6", 1348),
    PublishedCost("ViT-B/16", _BOTH, _vit("base", 384), "86.4", "55.5", 349),
    PublishedCost("ViT-L/16", _BOTH, _vit("large", 384), "304.1", "191.2", 124),
    PublishedCost("VisionLLaMA-L", "in1k, in1k", roadmap_config("visionllama", "large"), "310", None, None),
)


def table_2_bidirectional(tokens: int, width: int) -> int:
    """Multiply-adds of an attention layer in the paper's Table 2: 4 N D^2 + 2 N^2 D."""
    return 4 * tokens * width**2 + 2 * tokens**2 * width


def table_2_causal(tokens: int, width: int) -> int:
    """Multiply-adds of a causal attention layer in Table 2: 4 N D^2 + N^2 D + (floor(N^2 / 2) + 1) D."""
    return 4 * tokens * width**2 + tokens**2 * width + (tokens**2 // 2 + 1) * width


def agrees_to_the_printed_digits(count: int, printed: str, unit: int) -> bool:
    """Whether a count, rounded half up to as many digits as are printed, is what is printed.

    Args:
        count: Exact.
        printed: A number in units, such as "86.3".
        unit: What it is printed in units of, such as `MILLION`.
    """
    return (Decimal(count) / unit).quantize(Decimal(printed), ROUND_HALF_UP) == Decimal(printed)


# Two ways to count, of which the paper's digits show which one was used: everything there is, and what a counter finds.
_PARAMETER_COUNTS = {"all": parameters, "known modules": counted_parameters}
_MULTIPLY_ADD_COUNTS = {"products": multiply_adds, "products and LayerNorm": counted_multiply_adds}
_MODES: tuple[MaskMode, ...] = ("post_softmax", "pre_softmax")
_NOTHING = "-"


def complexity_records() -> list[dict[str, Any]]:
    """Every line of the study as plain values, ready for JSON.

    Returns:
        One dictionary per compared number, with `table` (of the paper, None for ours), `model`, `px`, `quantity`,
        `counted` (way of counting -> exact count), `printed` (what the paper prints, or its formula's value) and
        `agrees`: True or False, None where the paper prints nothing. Further keys belong to a quantity: `data`,
        `unit` and `reproduced_by` (the ways of counting that give the printed digits), `tokens`, `ratio`.
    """
    return [*_size_records(), *_layer_records(), *_pass_records()]


def complexity_sections() -> tuple[Section, ...]:
    """The study's part of a report: Tables 6 and 11, Table 2, and what a prediction really needs."""
    sizes = list(_size_records())
    return (
        _size_section([record for record in sizes if record["quantity"] == "parameters"]),
        _cost_section([record for record in sizes if record["quantity"] == "multiply-adds"]),
        _layer_section(list(_layer_records())),
        _pass_section(list(_pass_records())),
    )


def _size_records() -> Iterator[dict[str, Any]]:
    for row in PUBLISHED:
        yield _compared(row, "parameters", MILLION, row.parameters, _PARAMETER_COUNTS)
        record = _compared(row, "multiply-adds", BILLION, row.multiply_adds, _MULTIPLY_ADD_COUNTS)
        yield record | {"images_per_s_printed": row.images_per_s}


def _compared(
    row: PublishedCost, quantity: str, unit: int, printed: str | None, ways: Mapping[str, Callable[[ModelConfig], int]]
) -> dict[str, Any]:
    counted = {way: count(row.config) for way, count in ways.items()}
    by = [way for way, n in counted.items() if printed and agrees_to_the_printed_digits(n, printed, unit)]
    return {
        "table": "6, 11",
        "model": row.model,
        "data": row.data,
        "px": row.config.img_size,
        "quantity": quantity,
        "unit": unit,
        "counted": counted,
        "printed": printed,
        "reproduced_by": by,
        "agrees": bool(by) if printed else None,
    }


def _family() -> Iterator[tuple[str, ModelConfig]]:
    for px in (224, 384):
        for name, variant in VARIANTS.items():
            yield f"iLLaMA-{name[0].upper()}", dataclasses.replace(variant, img_size=px)


def _layer_records() -> Iterator[dict[str, Any]]:
    for model, config in _family():
        tokens, width = config.num_patches + 1, config.embed_dim
        full = attention_multiply_adds(config, softness=1.0)
        needed = {mode: attention_multiply_adds(dataclasses.replace(config, mask_mode=mode)) for mode in _MODES}
        common = {"table": "2", "model": model, "px": config.img_size, "tokens": tokens}
        yield common | {
            "quantity": "attention layer, bidirectional",
            "counted": {"everything": full},
            "printed": table_2_bidirectional(tokens, width),
            "agrees": full == table_2_bidirectional(tokens, width),
        }
        yield common | {
            "quantity": "attention layer, causal",
            "counted": needed,
            "printed": table_2_causal(tokens, width),
            "agrees": table_2_causal(tokens, width) in needed.values(),
            "ratio": {mode: full / count for mode, count in needed.items()},
        }


def _pass_records() -> Iterator[dict[str, Any]]:
    for model, config in _family():
        vit = multiply_adds(peer_config(config))
        needed = {mode: needed_multiply_adds(dataclasses.replace(config, mask_mode=mode)) for mode in _MODES}
        yield {
            "table": None,
            "model": model,
            "px": config.img_size,
            "quantity": "forward pass",
            "counted": {"ViT": vit, "everything": multiply_adds(config)} | needed,
            "printed": None,
            "agrees": None,
            "ratio": {mode: vit / count for mode, count in needed.items()},
        }


def _size_section(records: list[dict[str, Any]]) -> Section:
    header = ("model", "data", "px", "all (M)", "known modules (M)", "paper (M)", "agrees by")
    return Section(
        "Parameters (Tables 6 and 11)",
        (
            Text(
                "How to read it: the printed number is compared with two exact counts, rounded half up to its digits; "
                "the last column names the counts that give it."
            ),
            Table(header, tuple(_size_row(record) for record in records), _summary(records, _PARAMETER_COUNTS)),
            Text(
                "**all** is every number that is learned. **known modules** are linear layers, the patch convolution "
                "and LayerNorm: a counter that goes by the type of modules misses `cls_token` and `pos_embed`, which "
                "belong to none, and layers that torch did not have (RMSNorm, LayerScale). So the count does not grow "
                "with the image. `thop.profile` (0.1.1) gives exactly these numbers for these networks when their "
                "layers are torch's own classes. Which counter the paper used is inferred from its digits; its row of "
                "DeiT-S has the full count, as if quoted from elsewhere."
            ),
        ),
    )


def _cost_section(records: list[dict[str, Any]]) -> Section:
    header = ("model", "data", "px", "products (G)", "and LayerNorm (G)", "paper (G)", "agrees by", "images/s, paper")
    throughputs = (record["images_per_s_printed"] for record in records)
    rows = tuple(
        (*_size_row(record), _NOTHING if rate is None else str(rate))
        for record, rate in zip(records, throughputs, strict=True)
    )
    return Section(
        "Multiply-adds and throughput (Tables 6 and 11)",
        (
            Text(
                "How to read it: one image, forward, everything computed whatever the mask; the printed number is "
                "compared with both counts as above. The last column is the paper's throughput on an A100 at batch "
                "1024, not measured here: it needs an A100; `illama bench model` measures the device at hand."
            ),
            Table(header, rows, _summary(records, _MULTIPLY_ADD_COUNTS)),
            Text(
                "**products** are the matrix products and the patch convolution. **and LayerNorm** adds five "
                "operations per value for each LayerNorm, as fvcore does (a written-out RMSNorm adds nothing): "
                "`FlopCountAnalysis` (0.1.5) gives exactly these numbers for these networks with attention written "
                "out. Which counter the paper used is inferred from its digits."
            ),
        ),
    )


def _size_row(record: dict[str, Any]) -> tuple[str, ...]:
    counts = (_in(record["unit"], count) for count in record["counted"].values())
    if record["printed"] is None:
        verdict = _NOTHING
    elif len(record["reproduced_by"]) == len(record["counted"]):
        verdict = "both"
    else:
        verdict = ", ".join(record["reproduced_by"]) or "**neither**"
    return (record["model"], record["data"], str(record["px"]), *counts, record["printed"] or _NOTHING, verdict)


def _summary(records: list[dict[str, Any]], ways: dict[str, Any]) -> str:
    """How many printed numbers each way of counting gives, and which not."""
    printed = [record for record in records if record["printed"] is not None]
    sentences = [f"Of {len(printed)} printed numbers {sum(r['agrees'] for r in printed)} agree by one count or both."]
    for way in ways:
        missed = [f"{r['model']} at {r['px']} px" for r in printed if way not in r["reproduced_by"]]
        but = f", all but {', '.join(dict.fromkeys(missed))}" if missed else ""
        sentences.append(f"By **{way}**: {len(printed) - len(missed)}{but}.")
    return " ".join(sentences)


def _layer_section(records: list[dict[str, Any]]) -> Section:
    header = (
        "model",
        "N",
        "bidirectional (M)",
        "causal, paper (M)",
        "needed, post_softmax (M)",
        "more than the paper's",
        "needed, pre_softmax (M)",
        "saved, paper",
        "saved, post",
        "saved, pre",
    )
    rows, agreed = [], 0
    for bidirectional, causal in zip(records[::2], records[1::2], strict=True):  # as `_layer_records` has them
        full, paper = bidirectional["counted"]["everything"], causal["printed"]
        post, pre = (causal["counted"][mode] for mode in _MODES)
        agreed += bidirectional["agrees"]
        counts = (*(_in(MILLION, count) for count in (full, paper, post)), f"{post - paper:,}", _in(MILLION, pre))
        savings = (f"{1 - count / full:.1%}" for count in (paper, post, pre))
        rows.append((causal["model"], str(causal["tokens"]), *counts, *savings))
    exact = "every row" if agreed == len(rows) else f"{agreed} of {len(rows)} rows"
    return Section(
        "One attention layer (Table 2)",
        (
            Text(
                "How to read it: multiply-adds of one layer, projections included, for one image of N tokens; the "
                "paper's formulas stand beside what each mask needs, and the savings are against bidirectional."
            ),
            Table(header, tuple(rows), f"The paper's bidirectional formula is our count in {exact}."),
            Text(
                "The paper counts `4 N D^2 + 2 N^2 D` bidirectional, `4 N D^2 + N^2 D + (floor(N^2/2) + 1) D` causal. "
                "Below and on the diagonal lie `N (N + 1) / 2` pairs, so masking after the softmax (Eq. 2, "
                "`post_softmax`: all scores, half of the weights) needs `4 N D^2 + N^2 D + N (N + 1) / 2 D`, which is "
                "`(ceil(N/2) - 1) D` more than printed. Masking before it (Eq. 1, `pre_softmax`) needs only "
                "`4 N D^2 + N (N + 1) D`. The paper's formula is thus the published mask's, up to a term linear in N."
            ),
        ),
    )


def _in(unit: int, count: int) -> str:
    return f"{count / unit:.3f}"


def _pass_section(records: list[dict[str, Any]]) -> Section:
    header = ("model", "px", "ViT (G)", "all (G)", "post_softmax (G)", "pre_softmax (G)", "ViT / post", "ViT / pre")
    rows = tuple(
        (
            record["model"],
            str(record["px"]),
            *(_in(BILLION, count) for count in record["counted"].values()),
            *(f"{ratio:.3f}" for ratio in record["ratio"].values()),
        )
        for record in records
    )
    return Section(
        "What a prediction really needs",
        (
            Text(
                "How to read it: multiply-adds of a forward pass at softness 0 that skips what cannot change the "
                "logits, and how many times as much a ViT of the same width, depth and heads computes."
            ),
            Table(header, rows, "The paper prints no such numbers; this is arithmetic, not time."),
            Text(
                "Skipped are masked weights, under `pre_softmax` masked scores too, and in the last block everything "
                "but the class token's query, projection and feed-forward. SwiGLU's three matrices cost as much as "
                "the MLP's two for tiny, small and base; large has 3 x 2816 = 8448 columns against 2 x 4096 = 8192, "
                "hence its smaller gain."
            ),
            arithmetic_figure(),
        ),
    )


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
    counts = {"ViT": vit} | {mode: needed_parts(dataclasses.replace(config, mask_mode=mode)) for mode in _MODES}
    whole = sum(vit.values())
    return {label: {part: 100 * n / whole for part, n in parts.items()} for label, parts in counts.items()}


def _stack(axes: Axes, place: int, parts: dict[str, float]) -> None:
    left = 0.0
    for part, percent in parts.items():
        axes.barh(place, percent, 0.85, left=left, color=_COLORS[part])
        left += percent
    axes.annotate(f"{left:.1f}", (left, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
