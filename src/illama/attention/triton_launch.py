"""Starts the kernels of `triton_kernels.py`: tile sizes by shape and dtype, strides, grids."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
import triton

from illama.attention import triton_kernels as kernels
from illama.attention.rotary import Tables, rotate

INTERPRETED: bool = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 when the kernels were defined
LONGEST_ROW = 256  # tokens whose scores stay in registers; longer rows go tile by tile
LONGEST_ROTATED = 1024  # tokens up to which rotating inside of the kernels is estimated to pay


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


# Width 64 in half precision is measured on an H200 (docs/kernels.md): 64 rows and four warps with at most 168
# registers, three programs per multiprocessor, beat 128 rows and eight warps. The other rows are chosen by counting: a
# wgmma instruction works on 64 rows per four warps; a thread has 255 registers and a multiprocessor 65536. Row: the
# scores take queries * N / threads registers. Keys: two accumulators and two score tiles take (2 BD + 2 queries) *
# keys / threads. float32 runs on the plain cores, whose operands lie in registers: small tiles.
_HALF_TILES = {  # (kernel, BD): tiles, for bfloat16 and float16
    ("row", 32): Tiles(128, 64, 8, 1),
    ("row", 64): Tiles(64, 64, 4, 1, registers=168),
    ("row", 128): Tiles(128, 64, 8, 1),
    ("online", 32): Tiles(128, 64, 8, 3),
    ("online", 64): Tiles(64, 64, 4, 3, registers=168),
    ("online", 128): Tiles(128, 64, 8, 2),
    ("queries", 32): Tiles(128, 64, 8, 2),
    ("queries", 64): Tiles(64, 64, 4, 2, registers=168),
    ("queries", 128): Tiles(128, 64, 8, 2),
    ("keys", 32): Tiles(64, 128, 8, 2),
    ("keys", 64): Tiles(64, 64, 4, 1),
    ("keys", 128): Tiles(64, 64, 8, 2),
}
_FLOAT32_TILES = {  # (kernel, BD): tiles
    ("online", 32): Tiles(64, 32, 8, 2),
    ("online", 64): Tiles(64, 32, 8, 2),
    ("online", 128): Tiles(16, 16, 4, 2),
    ("queries", 32): Tiles(64, 32, 8, 2),
    ("queries", 64): Tiles(64, 32, 8, 2),
    ("queries", 128): Tiles(32, 32, 4, 2),
    ("keys", 32): Tiles(64, 32, 8, 2),
    ("keys", 64): Tiles(64, 32, 8, 2),
    ("keys", 128): Tiles(16, 16, 4, 2),
}


def tiles_for(kernel: str, head_dim: int, dtype: torch.dtype) -> Tiles:
    """Tiles of the kernel "row" (half precision only), "online", "queries" or "keys"."""
    return (_FLOAT32_TILES if dtype == torch.float32 else _HALF_TILES)[kernel, padded(head_dim)]


def forward_kernel(tokens: int, dtype: torch.dtype) -> str:
    """ "row" where the scores of a row fit into registers, else "online"."""
    return "row" if tokens <= LONGEST_ROW and dtype != torch.float32 else "online"


def rotates_inside(tokens: int, dtype: torch.dtype) -> bool:
    """Whether the kernels rotate q and k themselves, which saves a pass over both.

    Keys are rotated again for every block of queries, which costs more than the pass beyond about ten blocks. In
    float32 the rotated tile would have to stay in registers, and thousands of bytes per thread spill.
    """
    return tokens <= LONGEST_ROTATED and dtype != torch.float32


def padded(size: int) -> int:
    """The next power of two, as tile sides have to be."""
    return triton.next_power_of_2(size)


def row_plan(tokens: int, tiles: Tiles) -> dict[str, int]:
    """How the row kernel cuts a row of scores: TILES tiles, the last of them LAST keys wide (at least 16)."""
    count = triton.cdiv(tokens, tiles.keys)
    return {"TILES": count, "LAST": max(16, padded(tokens - (count - 1) * tiles.keys))}


def forward(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    v_BhNd: torch.Tensor,
    softness: torch.Tensor,
    rope: Tables | None,
    scale: float,
    modified: bool,
    out_BhNd: torch.Tensor,
    lse_BhN: torch.Tensor,
) -> None:
    """Fills `out_BhNd` (any strides, contiguous channels) and `lse_BhN` (float32, contiguous, base 2)."""
    batch, heads, tokens, head_dim = q_BhNd.shape
    if rope is not None and not rotates_inside(tokens, q_BhNd.dtype):
        q_BhNd, k_BhNd, rope = rotate(q_BhNd, rope), rotate(k_BhNd, rope), None
    name = forward_kernel(tokens, q_BhNd.dtype)
    tiles = tiles_for(name, head_dim, q_BhNd.dtype)
    plan = row_plan(tokens, tiles) if name == "row" else {}
    kernel = kernels.forward_row_kernel if name == "row" else kernels.forward_online_kernel
    tensors = (q_BhNd, k_BhNd, v_BhNd, out_BhNd)
    with _on(q_BhNd):
        kernel[batch * heads * triton.cdiv(tokens, tiles.queries),](
            *tensors, lse_BhN, softness, *_tables(rope, softness), *_strides(*tensors),
            heads, tokens, scale * math.log2(math.e), **plan, **constants(head_dim, rope, modified, tiles),
        )  # fmt: skip


def backward(
    d_out_BhNd: torch.Tensor,
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    v_BhNd: torch.Tensor,
    softness: torch.Tensor,
    rope: Tables | None,
    out_BhNd: torch.Tensor,
    lse_BhN: torch.Tensor,
    scale: float,
    modified: bool,
    gradients: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Fills the gradients of q, k and v (any strides, contiguous channels)."""
    batch, heads, tokens, head_dim = q_BhNd.shape
    d_q, d_k, d_v = gradients
    if rope is not None and not rotates_inside(tokens, q_BhNd.dtype):
        turned = rotate(q_BhNd, rope), rotate(k_BhNd, rope)
        backward(d_out_BhNd, *turned, v_BhNd, softness, None, out_BhNd, lse_BhN, scale, modified, gradients)
        for gradient in (d_q, d_k):
            gradient.copy_(rotate(gradient, (rope[0], -rope[1])))
        return
    if d_out_BhNd.stride(-1) != 1:  # the gradient of a sum, for instance, is one number with strides 0
        d_out_BhNd = d_out_BhNd.contiguous()
    delta_BhN = torch.empty_like(lse_BhN)
    qkv = (q_BhNd, k_BhNd, v_BhNd)
    numbers = (heads, tokens, scale, scale * math.log2(math.e))
    switches = (softness, *_tables(rope, softness))
    with _on(q_BhNd):
        tiles = tiles_for("queries", head_dim, q_BhNd.dtype)
        kernels.backward_queries_kernel[batch * heads * triton.cdiv(tokens, tiles.queries),](
            *qkv, out_BhNd, d_out_BhNd, lse_BhN, delta_BhN, d_q, *switches, *_strides(*qkv, out_BhNd, d_out_BhNd, d_q),
            *numbers, **constants(head_dim, rope, modified, tiles),
        )  # fmt: skip
        tiles = tiles_for("keys", head_dim, q_BhNd.dtype)
        kernels.backward_keys_kernel[batch * heads * triton.cdiv(tokens, tiles.keys),](
            *qkv, d_out_BhNd, lse_BhN, delta_BhN, d_k, d_v, *switches, *_strides(*qkv, d_out_BhNd, d_k, d_v),
            *numbers, **constants(head_dim, rope, modified, tiles),
        )  # fmt: skip


def constants(head_dim: int, rope: Tables | None, modified: bool, tiles: Tiles) -> dict[str, Any]:
    """What is known when a kernel is compiled, and how it is compiled."""
    return {
        "D": head_dim,
        "BD": padded(head_dim),
        "ROPE": rope is not None,
        "MODIFIED": modified,
        "INTERPRETED": INTERPRETED,
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "num_warps": tiles.warps,
        "num_stages": tiles.stages,
    } | ({} if tiles.registers is None else {"maxnreg": tiles.registers})


def _tables(rope: Tables | None, anything: torch.Tensor) -> Tables:
    """cos and sin; without rotation some pointer that is never read."""
    return (anything, anything) if rope is None else rope


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton starts kernels on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
