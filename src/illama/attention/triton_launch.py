"""Starts the Triton kernels that the tile table (`triton_tiles.py`) names: strides, grids, rotation outside."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import triton

from illama.attention import triton_kernels as kernels
from illama.attention.request import Tables
from illama.attention.triton_tiles import Tiles, kernels_for, padded, programs, rotates_inside, row_plan

INTERPRETED: bool = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1 when the kernels were defined
KERNELS = {
    "head": kernels.forward_head_kernel,
    "row": kernels.forward_row_kernel,
    "online": kernels.forward_online_kernel,
    "fused": kernels.backward_head_kernel,
    "queries": kernels.backward_queries_kernel,
    "keys": kernels.backward_keys_kernel,
    "rotate": kernels.rotate_kernel,
}
ROTATED_AT_ONCE = 2048  # channels of q and of k, one program of the rotation: 16 per thread


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
        (q_BhNd, k_BhNd), rope = rotated(q_BhNd, k_BhNd, rope), None
    tensors = (q_BhNd, k_BhNd, v_BhNd, out_BhNd)
    ((name, tiles),) = kernels_for("forward", batch * heads, tokens, head_dim, q_BhNd.dtype).items()
    with _on(q_BhNd):
        KERNELS[name][programs(name, batch * heads, tokens, tiles),](
            *tensors, lse_BhN, softness, *_tables(rope, softness), *_strides(*tensors),
            heads, tokens, scale * math.log2(math.e), **constants(name, tokens, head_dim, rope, modified, tiles),
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
        turned = rotated(q_BhNd, k_BhNd, rope)
        backward(d_out_BhNd, *turned, v_BhNd, softness, None, out_BhNd, lse_BhN, scale, modified, gradients)
        rotate_into(d_q, d_k, d_q, d_k, rope, back=True)
        return
    if d_out_BhNd.stride(-1) != 1:  # the gradient of a sum, for instance, is one number with strides 0
        d_out_BhNd = d_out_BhNd.contiguous()
    delta_BhN = torch.empty_like(lse_BhN)
    qkv = (q_BhNd, k_BhNd, v_BhNd)
    # What each kernel reads and writes with strides, around the plain lse and delta.
    arguments: dict[str, tuple[tuple[torch.Tensor, ...], ...]] = {
        "fused": ((*qkv, out_BhNd, d_out_BhNd), (lse_BhN,), (d_q, d_k, d_v)),
        "queries": ((*qkv, out_BhNd, d_out_BhNd), (lse_BhN, delta_BhN), (d_q,)),
        "keys": ((*qkv, d_out_BhNd), (lse_BhN, delta_BhN), (d_k, d_v)),
    }
    numbers = (heads, tokens, scale, scale * math.log2(math.e))
    switches = (softness, *_tables(rope, softness))
    with _on(q_BhNd):
        for name, tiles in kernels_for("backward", batch * heads, tokens, head_dim, q_BhNd.dtype).items():
            read, plain, written = arguments[name]
            KERNELS[name][programs(name, batch * heads, tokens, tiles),](
                *read, *plain, *written, *switches, *_strides(*read, *written), *numbers,
                **constants(name, tokens, head_dim, rope, modified, tiles),
            )  # fmt: skip


def rotated(q_BhNd: torch.Tensor, k_BhNd: torch.Tensor, rope: Tables) -> tuple[torch.Tensor, torch.Tensor]:
    """q and k after the rotary embedding, as `rotary.rotate` rounds them, in new contiguous tensors."""
    turned = q_BhNd.new_empty(q_BhNd.shape), k_BhNd.new_empty(k_BhNd.shape)
    rotate_into(q_BhNd, k_BhNd, *turned, rope)
    return turned


def rotate_into(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    q_turned_BhNd: torch.Tensor,
    k_turned_BhNd: torch.Tensor,
    rope: Tables,
    *,
    back: bool = False,
) -> None:
    """Rotates q and k, `back` by the negative angles, in one launch; the targets may be q and k themselves.

    All of any strides, with contiguous channels.
    """
    batch, heads, tokens, head_dim = q_BhNd.shape
    tensors = (q_BhNd, k_BhNd, q_turned_BhNd, k_turned_BhNd)
    constants = rotation_constants(head_dim, back)
    with _on(q_BhNd):
        kernels.rotate_kernel[batch * heads * triton.cdiv(tokens, constants["ROWS"]),](
            *tensors, *rope, *_strides(*tensors), heads, tokens, **constants,
        )  # fmt: skip


def constants(
    name: str, tokens: int, head_dim: int, rope: Tables | None, modified: bool, tiles: Tiles
) -> dict[str, Any]:
    """What is known when an attention kernel is compiled, and how it is compiled."""
    return {
        **row_plan(name, tokens, tiles),
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


def rotation_constants(head_dim: int, back: bool) -> dict[str, Any]:
    """The same for the rotation."""
    return {
        "D": head_dim,
        "BD": padded(head_dim),
        "BACK": back,
        "INTERPRETED": INTERPRETED,
        "ROWS": ROTATED_AT_ONCE // padded(head_dim),
        "num_warps": 4,
    }


def _tables(rope: Tables | None, anything: torch.Tensor) -> Tables:
    """cos and sin; without rotation some pointer that is never read."""
    return (anything, anything) if rope is None else rope


def _strides(*tensors: torch.Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def _on(tensor: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton starts kernels on the current device, which need not be the tensors'."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
