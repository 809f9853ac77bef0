"""Counts against the printed digits, against networks, and against sums done by hand."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illama.models import ILlama, ModelConfig
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
from illama.models.variants import PEERS, ROADMAP, VARIANTS, roadmap_config
from illama.report import Figure, Table
from illama.reproduce.complexity import (
    MILLION,
    PUBLISHED,
    agrees_to_the_printed_digits,
    arithmetic_figure,
    complexity_records,
    complexity_sections,
    table_2_bidirectional,
    table_2_causal,
)

TOY = ModelConfig(img_size=(32, 16), patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=7)
# Written a second time, and rounded by another rule; no count lies on a half, where the rules differ.
PRINTED = [
    ("iLLaMA-T", 224, 5.7, 1.3),
    ("iLLaMA-S", 224, 21.9, 4.6),
    ("iLLaMA-B", 224, 86.3, 17.6),
    ("iLLaMA-B", 384, 86.3, 55.5),
    ("iLLaMA-L", 224, 310.2, 62.8),
    ("iLLaMA-L", 384, 310.2, 194.7),
    ("DeiT-Ti", 224, 5.7, 1.3),
    ("DeiT-B", 224, 86.4, 17.6),
    ("ViT-B/16", 384, 86.4, 55.5),
    ("ViT-L/16", 384, 304.1, 191.2),
]


def config_of(model: str, px: int) -> ModelConfig:
    return next(row.config for row in PUBLISHED if row.model == model and row.config.img_size == px)


@pytest.mark.parametrize(("model", "px", "mega", "giga"), PRINTED)
def test_the_papers_counters_give_the_printed_digits(model: str, px: int, mega: float, giga: float) -> None:
    config = config_of(model, px)
    assert config.img_size == px
    assert round(counted_parameters(config) / 1e6, 1) == mega
    assert round(counted_multiply_adds(config) / 1e9, 1) == giga


def test_rows_with_an_explanation_of_their_own() -> None:
    deit_s = config_of("DeiT-S", 224)
    assert (round(parameters(deit_s) / 1e6, 1), round(counted_parameters(deit_s) / 1e6, 1)) == (22.1, 22.0)
    assert round(counted_multiply_adds(deit_s) / 1e9, 1) == 4.6
    peer = config_of("VisionLLaMA-L", 224)
    assert round(parameters(peer) / 1e6) == round(counted_parameters(peer) / 1e6) == 310
    # Nearby conventions that the digits rule out: RMSNorm counted, LayerNorm not counted, products alone.
    base, large = config_of("iLLaMA-B", 224), config_of("ViT-L/16", 384)
    assert round((counted_parameters(base) + 25 * 768) / 1e6, 1) == 86.4
    assert round((counted_parameters(large) - 49 * 2 * 1024) / 1e6, 1) == 304.0
    assert round(multiply_adds(large) / 1e9, 1) == 191.1


def test_every_printed_number_agrees_and_says_by_which_count() -> None:
    compared = [record for record in complexity_records() if record["table"] == "6, 11"]
    assert len(compared) == 2 * len(PUBLISHED) == 28
    by = {(r["model"], r["px"], r["quantity"]): r["reproduced_by"] for r in compared}
    assert by["iLLaMA-B", 384, "parameters"] == ["known modules"]
    assert by["DeiT-S", 224, "parameters"] == ["all"]
    assert by["ViT-L/16", 384, "multiply-adds"] == ["products and LayerNorm"]
    assert by["iLLaMA-T", 224, "multiply-adds"] == ["products", "products and LayerNorm"]
    unprinted = [record for record in compared if record["printed"] is None]
    assert [(r["model"], r["quantity"], r["agrees"]) for r in unprinted] == [("VisionLLaMA-L", "multiply-adds", None)]
    assert all(record["agrees"] is True for record in compared if record["printed"] is not None)


@pytest.mark.parametrize(
    ("count", "printed", "agrees"),
    [
        (86_350_000, "86.4", True),  # half goes up, where floats and bankers would differ
        (86_349_999, "86.4", False),
        (86_250_000, "86.3", True),
        (86_350_000, "86.3", False),
        (310_499_999, "310", True),
        (310_500_000, "310", False),
    ],
)
def test_rounding_is_ordinary(count: int, printed: str, agrees: bool) -> None:
    assert agrees_to_the_printed_digits(count, printed, MILLION) is agrees


@pytest.mark.parametrize("row", [*ROADMAP, *PEERS])
@pytest.mark.parametrize("edits", [{}, {"qkv_bias": False, "layer_scale": 0.1}, {"num_classes": 0}])
def test_counted_parameters_are_those_of_modules_that_torch_has(row: str, edits: dict[str, object]) -> None:
    config = roadmap_config(row, "tiny", **({"embed_dim": 32, "num_heads": 2, "depth": 2} | edits))
    with torch.device("meta"):
        model = ILlama(config)
    known = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.LayerNorm)]
    assert counted_parameters(config) == sum(p.numel() for m in known for p in m.parameters())


def test_counted_multiply_adds_are_products_and_five_per_normed_value() -> None:
    config = dataclasses.replace(peer_config(TOY), global_pool="avg")  # the last block computes all tokens
    model = ILlama(config)
    normed: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(lambda _module, _inputs, output: normed.append(output.numel()))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.rand(1, 3, 32, 16))
    assert len(normed) == 2 * config.depth + 1
    assert counted_multiply_adds(config) == counter.get_total_flops() // 2 + 5 * sum(normed)
    assert counted_multiply_adds(TOY) == multiply_adds(TOY)  # RMSNorm


def test_table_2_by_hand() -> None:
    # N = 5 tokens, D = 8: projections 4*5*64 = 1280; one full product 25*8 = 200; 15 pairs up to the diagonal.
    config = ModelConfig(img_size=4, patch_size=2, embed_dim=8, num_heads=2, depth=2, num_classes=3)
    strict = dataclasses.replace(config, mask_mode="pre_softmax")
    assert table_2_bidirectional(5, 8) == 1280 + 400 == attention_multiply_adds(config, softness=1.0)
    assert table_2_causal(5, 8) == 1280 + 200 + (12 + 1) * 8
    assert attention_multiply_adds(config) == 1280 + 200 + 15 * 8
    assert attention_multiply_adds(strict) == 1280 + 15 * 8 + 15 * 8
    assert attention_multiply_adds(config, 0.5) == attention_multiply_adds(strict, 0.5) == 1680


def test_the_papers_causal_formula_is_short_by_half_a_row() -> None:
    for side in range(1, 6):
        config = ModelConfig(img_size=(2 * side, 4), patch_size=2, embed_dim=8, num_heads=2, num_classes=3)
        tokens = 2 * side + 1
        assert attention_multiply_adds(config) - table_2_causal(tokens, 8) == (-(-tokens // 2) - 1) * 8
    records = [r for r in complexity_records() if r["table"] == "2"]
    assert [r["tokens"] for r in records] == [197] * 8 + [577] * 8
    assert {r["agrees"] for r in records if r["quantity"].endswith("bidirectional")} == {True}
    assert {r["agrees"] for r in records if r["quantity"].endswith("causal")} == {False}


@pytest.mark.parametrize("mode", ["post_softmax", "pre_softmax"])
@pytest.mark.parametrize("pool", ["token", "avg", ""])
@pytest.mark.parametrize("softness", [0.0, 0.3])
def test_parts_are_where_the_arithmetic_goes(mode: str, pool: str, softness: float) -> None:
    config = dataclasses.replace(TOY, mask_mode=mode, global_pool=pool)
    needed, everything = needed_parts(config, softness), multiply_add_parts(config)
    assert list(needed) == list(everything)
    assert sum(needed.values()) == needed_multiply_adds(config, softness)
    assert sum(everything.values()) == multiply_adds(config)
    assert all(needed[part] <= everything[part] for part in needed)
    assert needed["patch embedding"] == 8 * 3 * 64 * 32
    assert needed["head"] == {"token": 1, "avg": 1, "": 9}[pool] * 32 * 7
    rows = 9 * TOY.depth if pool != "token" else 9 * (TOY.depth - 1) + 1
    assert needed["feed-forward"] == rows * 3 * 32 * TOY.hidden_dim
    triangle, queries = 45 * 32, 81 * 32
    weighted = triangle if softness == 0 else queries
    last = weighted if pool != "token" else 9 * 32
    assert needed["weighted values"] == (TOY.depth - 1) * weighted + last


def test_records_survive_json() -> None:
    records = complexity_records()
    assert json.loads(json.dumps(records, allow_nan=False)) == records
    assert all(
        {"table", "model", "px", "quantity", "counted", "printed", "agrees"} <= record.keys() for record in records
    )


def test_tables_show_the_records() -> None:
    records = complexity_records()
    size, cost, layer, whole = (
        next(block for block in section.blocks if isinstance(block, Table)) for section in complexity_sections()
    )
    for table, quantity in ((size, "parameters"), (cost, "multiply-adds")):
        shown = [record for record in records if record["quantity"] == quantity]
        assert len(table.rows) == len(shown)
        for row, record in zip(table.rows, shown, strict=True):
            assert row[:3] == (record["model"], record["data"], str(record["px"]))
            for cell, count in zip(row[3:5], record["counted"].values(), strict=True):
                assert abs(Fraction(cell) * record["unit"] - count) * 2000 <= record["unit"]
            assert row[5] == (record["printed"] or "-")
            assert "neither" not in row[6]
    causal = [record for record in records if record["quantity"] == "attention layer, causal"]
    assert [int(row[5].replace(",", "")) for row in layer.rows] == [
        record["counted"]["post_softmax"] - record["printed"] for record in causal
    ]
    passes = [record for record in records if record["table"] is None]
    assert [tuple(map(float, row[-2:])) for row in whole.rows] == [
        tuple(round(ratio, 3) for ratio in record["ratio"].values()) for record in passes
    ]


def test_a_disagreement_is_shown_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = dataclasses.replace(PUBLISHED[0], parameters="5.8")
    monkeypatch.setattr("illama.reproduce.complexity.PUBLISHED", (wrong, *PUBLISHED[1:]))
    assert complexity_records()[0]["agrees"] is False
    table = next(block for block in complexity_sections()[0].blocks if isinstance(block, Table))
    assert table.rows[0][5:] == ("5.8", "**neither**")
    assert table.caption.startswith("Of 14 printed numbers 13 agree")


def test_the_figure_is_the_same_every_time() -> None:
    figures = [block for section in complexity_sections() for block in section.blocks if isinstance(block, Figure)]
    assert figures == [arithmetic_figure()]
    assert figures[0].svg.count(b"<path") > 2 * 3 * len(VARIANTS)


def test_counting_loads_no_torch() -> None:
    code = (
        "import sys; from illama.reproduce.complexity import complexity_sections; complexity_sections();"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
