"""The tile table: it takes what was fastest where that is measured, and every row can serve what it is asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from illama.attention import triton_tiles
from illama.attention.triton_tiles import ANY, LEAST_HEADS, Tiles, kernels_for, rows_of_table

MEASURED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "gpu_h200" / "kernels.jsonl"
NAMES = {"fwd": ("head", "row", "online"), "bwd": ("fused", "queries", "keys")}
WAYS = {"forward": "fwd", "backward": "bwd"}
TABLES = [(way, dim, dtype) for way in WAYS for dim in (32, 64, 128) for dtype in (torch.bfloat16, torch.float32)]


def times() -> dict[tuple[int, int, int], dict[tuple[str, Tiles], float]]:
    """Milliseconds of kernels with their tiles, by (batch times heads, tokens, head width)."""
    found: dict[tuple[int, int, int], dict[tuple[str, Tiles], float]] = {}
    for line in MEASURED.read_text().splitlines():
        row = json.loads(line)
        way, _, kernel = row.get("kernel", "").partition(" ")
        if kernel not in NAMES.get(way, ()) or row["alpha"] != 0 or row.get("ms") is None:
            continue
        rotated_inside = row["shape"][2] <= triton_tiles.LONGEST_ROTATED
        if row.get("rotation") == ("before" if rotated_inside else "inside"):
            continue
        numbers = re.findall(r"(\w+)=(\w+)", row["tiles"])
        tiles = {name: None if number == "None" else int(number) for name, number in numbers}
        tiles |= {"registers": row.get("extra", {}).get("maxnreg", tiles.get("registers"))}
        batch, heads, tokens, head_dim = row["shape"]
        found.setdefault((batch * heads, tokens, head_dim), {})[kernel, Tiles(**tiles)] = row["ms"]
    return found


@pytest.mark.parametrize(("shape", "measured"), times().items(), ids=str)
def test_the_table_takes_what_was_fastest(shape, measured) -> None:
    """Within two percent: as far apart lie equal kernels. A backward pass is "fused", or "queries" and "keys"."""

    def fastest(*kernels: str) -> float:
        every = [[ms for (name, _), ms in measured.items() if name == kernel] for kernel in kernels]
        return sum(map(min, every)) if all(every) else float("inf")

    ways = {"forward": [("head",), ("row",), ("online",)], "backward": [("fused",), ("queries", "keys")]}
    for way, alternatives in ways.items():
        chosen = kernels_for(way, *shape, torch.bfloat16)
        assert sum(measured[kernel] for kernel in chosen.items()) <= 1.02 * min(
            fastest(*names) for names in alternatives
        )


def test_the_measured_shapes_are_there() -> None:
    assert {(tokens, head_dim) for _, tokens, head_dim in times()} >= {(65, 64), (197, 64), (577, 64), (4097, 64)}


@pytest.mark.parametrize(("way", "head_dim", "dtype"), TABLES)
def test_every_row_serves_some_heads_and_can(way, head_dim, dtype) -> None:
    rows = rows_of_table(way, head_dim, dtype)
    assert rows[-1].tokens == ANY
    for row in rows:
        many = kernels_for(way, LEAST_HEADS, row.tokens, head_dim, dtype)
        few = kernels_for(way, LEAST_HEADS - 1, row.tokens, head_dim, dtype)
        assert row.kernels in (many, few)
        assert not few.keys() & set(triton_tiles.PER_HEAD)
        for kernel, tiles in row.kernels.items():
            if kernel == "fused":
                assert row.tokens <= tiles.queries
            if kernel in ("head", "row"):
                assert row.tokens <= 256
                assert row.tokens <= tiles.keys * triton_tiles.row_plan(kernel, row.tokens, tiles)["TILES"]


def test_rows_of_scores_are_cut_to_what_there_is() -> None:
    tiles = Tiles(64, 64, 4, 1)
    assert triton_tiles.row_plan("head", 197, tiles) == {"TILES": 4, "LAST": 16}  # 208 columns, not 256
    assert triton_tiles.row_plan("row", 1, tiles) == {"TILES": 1, "LAST": 16}
    assert triton_tiles.row_plan("row", 256, tiles) == {"TILES": 4, "LAST": 64}
    assert triton_tiles.row_plan("online", 256, tiles) == {}
    assert [triton_tiles.programs(kernel, 6, 197, Tiles(64, 32, 4, 1)) for kernel in ("head", "row", "keys")] == [
        6,
        24,
        42,
    ]
