"""The tile table: which Triton kernels serve a request, and how they cut it. One table for all shapes and dtypes.

Letters: N tokens, d head width, BD d rounded up to a power of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

PER_HEAD = ("head", "fused")  # kernels that give a whole head to one program
LEAST_HEADS = 396  # heads (batch times heads) from which on they serve: three programs on each of 132 multiprocessors
LONGEST_ROTATED = 1024  # tokens up to which rotating inside of the kernels is estimated to pay
ANY = 2**31 - 1  # tokens


@dataclass(frozen=True)
class Tiles:
    """How one kernel cuts a head: rows of queries and of keys per tile, warps per program, tiles in flight.

    Attributes:
        registers: Most registers per thread; fewer let more programs share a multiprocessor. None leaves it open.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


@dataclass(frozen=True)
class TileRow:
    """The kernels of one pass over heads of at most `tokens` tokens, in the order in which they are started."""

    tokens: int
    kernels: dict[str, Tiles]


# Forward: "head" (a program per head), "row" (a row of scores in registers) or "online" (any N). Backward: "fused" (a
# program per head) or "queries", then "keys".
#
# (pass, BD): rows for bfloat16 and float16; the first one that is long enough serves. Width 64 is measured on an H200
# at 65, 197, 577 and 4,097 tokens (test_the_table_takes_what_was_fastest reads the times). All else is estimated:
#
# * A wgmma instruction works on 64 rows per four warps; a thread has 255 registers and a multiprocessor 65536, of which
#   at most 168 per thread let three programs of four warps share it. Row and head: the scores take queries * N /
#   threads registers, so the limit spills beyond 3 * 64 + 16 = 208 keys. Keys: two accumulators and two score tiles
#   take (2 BD + 2 queries) * keys / threads.
# * Widths 32 and 128: a program per head where nothing spills and no fewer warps fit a multiprocessor than with the
#   kernels that it replaces.
# * Fused wins at 65 tokens and loses at 197; where between it turns is not known.
_HALF: dict[tuple[str, int], tuple[TileRow, ...]] = {
    ("forward", 32): (
        TileRow(128, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(208, {"head": Tiles(64, 64, 4, 1, registers=168)}),
        TileRow(256, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(256, {"row": Tiles(128, 64, 8, 1)}),
        TileRow(ANY, {"online": Tiles(128, 64, 8, 3)}),
    ),
    ("forward", 64): (
        TileRow(128, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(208, {"head": Tiles(64, 64, 4, 1, registers=168)}),
        TileRow(256, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(128, {"row": Tiles(64, 64, 4, 1)}),
        TileRow(256, {"row": Tiles(64, 64, 4, 1, registers=168)}),
        TileRow(ANY, {"online": Tiles(64, 64, 4, 3, registers=168)}),
    ),
    ("forward", 128): (
        TileRow(128, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(208, {"head": Tiles(64, 64, 4, 1)}),
        TileRow(256, {"row": Tiles(128, 64, 8, 1)}),
        TileRow(ANY, {"online": Tiles(128, 64, 8, 2)}),
    ),
    ("backward", 32): (
        TileRow(64, {"fused": Tiles(64, 16, 4, 1)}),
        TileRow(128, {"fused": Tiles(128, 16, 4, 1)}),
        TileRow(ANY, {"queries": Tiles(128, 64, 8, 2), "keys": Tiles(64, 128, 8, 2)}),
    ),
    ("backward", 64): (
        TileRow(64, {"fused": Tiles(64, 16, 4, 1, registers=168)}),
        TileRow(128, {"fused": Tiles(128, 16, 4, 1)}),
        TileRow(ANY, {"queries": Tiles(64, 64, 4, 2, registers=168), "keys": Tiles(64, 64, 4, 1)}),
    ),
    ("backward", 128): (TileRow(ANY, {"queries": Tiles(128, 64, 8, 2), "keys": Tiles(64, 64, 8, 2)}),),
}
# float32 runs on the plain cores, whose operands lie in registers: small tiles, and no row of scores beside them.
_FLOAT32: dict[tuple[str, int], tuple[TileRow, ...]] = {
    ("forward", 32): (TileRow(ANY, {"online": Tiles(64, 32, 8, 2)}),),
    ("forward", 64): (TileRow(ANY, {"online": Tiles(64, 32, 8, 2)}),),
    ("forward", 128): (TileRow(ANY, {"online": Tiles(16, 16, 4, 2)}),),
    ("backward", 32): (TileRow(ANY, {"queries": Tiles(64, 32, 8, 2), "keys": Tiles(64, 32, 8, 2)}),),
    ("backward", 64): (TileRow(ANY, {"queries": Tiles(64, 32, 8, 2), "keys": Tiles(64, 32, 8, 2)}),),
    ("backward", 128): (TileRow(ANY, {"queries": Tiles(32, 32, 4, 2), "keys": Tiles(16, 16, 4, 2)}),),
}


def rows_of_table(direction: str, head_dim: int, dtype: torch.dtype) -> tuple[TileRow, ...]:
    """All rows of "forward" or "backward" for a head width, in the order in which they are asked."""
    return (_FLOAT32 if dtype == torch.float32 else _HALF)[direction, padded(head_dim)]


def kernels_for(direction: str, heads: int, tokens: int, head_dim: int, dtype: torch.dtype) -> dict[str, Tiles]:
    """The kernels that serve a pass, with their tiles, in the order in which they are started.

    Args:
        direction: "forward" or "backward".
        heads: Heads of the whole batch. Few of them leave multiprocessors without a program where each takes a head.
    """
    return next(
        row.kernels
        for row in rows_of_table(direction, head_dim, dtype)
        if tokens <= row.tokens and (heads >= LEAST_HEADS or not row.kernels.keys() & set(PER_HEAD))
    )


def rotates_inside(tokens: int, dtype: torch.dtype) -> bool:
    """Whether the attention kernels rotate q and k themselves, which saves a pass over both.

    Keys are rotated again for every block of queries, which costs more than the pass beyond about ten blocks. In
    float32 the rotated tile would have to stay in registers, and thousands of bytes per thread spill.
    """
    return tokens <= LONGEST_ROTATED and dtype != torch.float32


def padded(size: int) -> int:
    """The next power of two, as tile sides have to be."""
    return 1 << (size - 1).bit_length()


def row_plan(kernel: str, tokens: int, tiles: Tiles) -> dict[str, int]:
    """How "row" and "head" cut a row of scores: TILES tiles, the last of them LAST keys wide (at least 16)."""
    if kernel not in ("row", "head"):
        return {}
    count = -(-tokens // tiles.keys)
    return {"TILES": count, "LAST": max(16, padded(tokens - (count - 1) * tiles.keys))}


def programs(kernel: str, heads: int, tokens: int, tiles: Tiles) -> int:
    """Programs of one launch; `heads` counts over the batch."""
    if kernel in PER_HEAD:
        return heads
    return heads * -(-tokens // (tiles.keys if kernel == "keys" else tiles.queries))
