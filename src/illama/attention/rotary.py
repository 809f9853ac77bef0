"""The rotary embedding applied to q or k.

Letters: B batch, h heads, N tokens, d head width. A table row belongs to a token; column j rotates the interleaved
pair of channels (2j, 2j + 1).
"""

from __future__ import annotations

import torch

Tables = tuple[torch.Tensor, torch.Tensor]  # cos and sin of the angles, each (N, d/2)


def rotate(x_BhNd: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Rotate the channel pairs of q or k in the tables' precision; the result has the input's dtype.

    The order of the result's channels is free, for only products of q and k follow and both come out alike. Eager
    mode multiplies complex numbers, one pass over memory, and keeps the pairs interleaved. Compilers and exporters
    get real arithmetic, which they fuse, and the pairs' first channels before their second ones.
    """
    cos, sin = tables
    exact = x_BhNd.to(torch.promote_types(x_BhNd.dtype, cos.dtype))
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or exact.device.type not in ("cpu", "cuda"):
        first, second = exact.unflatten(-1, (-1, 2)).unbind(-1)
        turned = torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
    else:
        exact = exact if _has_whole_pairs(exact) else exact.clone(memory_format=torch.contiguous_format)
        turned = torch.view_as_real(_pairs(exact) * torch.complex(cos, sin)).flatten(-2)
    return turned.to(x_BhNd.dtype)


def rotate_into(target: torch.Tensor, x_BhNd: torch.Tensor, tables: Tables | None, scale: float = 1.0) -> None:
    """Write q or k, rotated and scaled, to where it is wanted; in one pass where the dtype allows.

    For code that is not traced: the pairs stay interleaved. Without tables nothing is rotated.
    """
    if tables is None:
        torch.mul(x_BhNd, scale, out=target)
    elif x_BhNd.dtype == tables[0].dtype and _has_whole_pairs(x_BhNd) and _has_whole_pairs(target):
        torch.mul(_pairs(x_BhNd), torch.complex(*tables) * scale, out=_pairs(target))
    else:
        target.copy_(rotate(x_BhNd, (tables[0] * scale, tables[1] * scale)))


def _pairs(x: torch.Tensor) -> torch.Tensor:
    """The channel pairs as complex numbers, without a copy."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def _has_whole_pairs(x: torch.Tensor) -> bool:
    """Whether the memory of `x` can be read as complex numbers."""
    return x.stride(-1) == 1 and x.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in x.stride()[:-1])
