"""What is asked of an attention backend, checked once; the rotary embedding applied to q or k.

Letters: B batch, h heads, M queries, N tokens (keys), d head width. A row of the rotary tables belongs to a token;
column j rotates the interleaved pair of channels (2j, 2j + 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from illama.errors import UserError
from illama.models.config import Mask, MaskMode

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


@dataclass(frozen=True)
class AttentionRequest:
    """One call of the attention door; the fields are its arguments.

    Attributes:
        q_BhNd: Queries; M <= N rows, those of the tokens from `query_start` on.
        k_BhNd, v_BhNd: Keys and values of all tokens.
        softness: A number, or a 0-d tensor whose value stays on the device.
        mask, mask_mode, scale: As in `soft_causal_attention`.
        rope: Tables that rotate q and k, or None when they come rotated.
        packed: The (B, N, 3, h, d) tensor that q, k and v are views of, where there is one.
        query_start: Index of the first query's token.
    """

    q_BhNd: torch.Tensor
    k_BhNd: torch.Tensor
    v_BhNd: torch.Tensor
    softness: float | torch.Tensor
    mask: Mask
    mask_mode: MaskMode
    scale: float
    rope: Tables | None = None
    packed: torch.Tensor | None = None
    query_start: int = 0

    def __post_init__(self) -> None:
        q, k, v = self.q_BhNd, self.k_BhNd, self.v_BhNd
        first, rows, tokens = self.query_start, q.shape[-2], k.shape[-2]
        if q.dim() != 4 or k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[-1] != k.shape[-1]:
            shapes = ", ".join(str(tuple(t.shape)) for t in (q, k, v))
            raise UserError(f"q, k and v must share one shape (B, h, N, d), q may have fewer rows; got {shapes}")
        if not 0 <= first <= tokens - rows:
            raise UserError(f"{rows} queries from token {first} on do not fit {tokens} tokens")
        if isinstance(self.softness, torch.Tensor):  # its value stays on the device: reading it would wait for it
            if self.softness.dim() != 0:
                raise UserError(f"softness must be a number or a 0-d tensor; got shape {tuple(self.softness.shape)}")
        elif not 0.0 <= self.softness <= 1.0:
            raise UserError(f"softness must lie between 0 (causal) and 1 (bidirectional); got {self.softness}")
        if self.mask not in _MASKS:
            raise UserError(f"mask must be one of {', '.join(_MASKS)}; got {self.mask!r}")
        if self.mask_mode not in _MASK_MODES:
            raise UserError(f"mask_mode must be one of {', '.join(_MASK_MODES)}; got {self.mask_mode!r}")

    @property
    def complete(self) -> bool:
        """Whether every token asks: self-attention as in the paper."""
        return self.q_BhNd.shape[-2] == self.k_BhNd.shape[-2]

    @property
    def sees_everything(self) -> bool:
        """Whether the mask hides nothing from these queries, at any softness."""
        last_alone = self.query_start == self.k_BhNd.shape[-2] - 1
        first_alone = self.query_start == 0 and self.q_BhNd.shape[-2] == 1
        return self.mask == "none" or last_alone or (self.mask == "modified_causal" and first_alone)

    def rotated(self) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k after the rotary embedding."""
        if self.rope is None:
            return self.q_BhNd, self.k_BhNd
        rows = slice(self.query_start, self.query_start + self.q_BhNd.shape[-2])
        cos, sin = self.rope
        return rotate(self.q_BhNd, (cos[rows], sin[rows])), rotate(self.k_BhNd, self.rope)

    def allowed(self) -> torch.Tensor:
        """The mask C as (M, N) booleans: True where the query (row) may look at the key (column)."""
        tokens = torch.arange(self.k_BhNd.shape[-2], device=self.q_BhNd.device)
        queries = tokens[self.query_start : self.query_start + self.q_BhNd.shape[-2]].unsqueeze(1)
        causal = tokens <= queries
        if self.mask == "none":
            return torch.ones_like(causal)
        # The class token stands first in the modified mask and sees everything.
        return causal | (queries == 0) if self.mask == "modified_causal" else causal

    def additive_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """log(alpha + (1 - alpha) C) as (M, N): what `pre_softmax` adds to the scores."""
        allowed = self.allowed()
        softness = torch.as_tensor(self.softness, dtype=dtype, device=allowed.device)
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), softness.log())


_MASKS, _MASK_MODES = get_args(Mask), get_args(MaskMode)
