"""What is asked of an attention backend, checked once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch

from illama.errors import UserError
from illama.models.config import Mask, MaskMode


@dataclass(frozen=True)
class AttentionRequest:
    """One call of `soft_causal_attention`; the fields are its arguments."""

    q_BhNd: torch.Tensor
    k_BhNd: torch.Tensor
    v_BhNd: torch.Tensor
    softness: float | torch.Tensor
    mask: Mask
    mask_mode: MaskMode
    scale: float
    return_weights: bool

    @classmethod
    def of(
        cls,
        q_BhNd: torch.Tensor,
        k_BhNd: torch.Tensor,
        v_BhNd: torch.Tensor,
        softness: float | torch.Tensor,
        mask: Mask,
        mask_mode: MaskMode,
        scale: float | None,
        return_weights: bool,
    ) -> AttentionRequest:
        """The request, or a UserError that names what is wrong with it."""
        shapes = {tuple(t.shape) for t in (q_BhNd, k_BhNd, v_BhNd)}
        if len(shapes) != 1 or q_BhNd.dim() != 4:
            found = ", ".join(str(tuple(t.shape)) for t in (q_BhNd, k_BhNd, v_BhNd))
            raise UserError(f"q, k and v must share one shape (B, h, N, d); got {found}")
        if isinstance(softness, torch.Tensor):  # its value stays on the device: reading it would wait for it
            if softness.dim() != 0:
                raise UserError(f"softness must be a number or a 0-d tensor; got shape {tuple(softness.shape)}")
        elif not 0.0 <= softness <= 1.0:
            raise UserError(f"softness must lie between 0 (causal) and 1 (bidirectional); got {softness}")
        if mask not in get_args(Mask):
            raise UserError(f"mask must be one of {', '.join(get_args(Mask))}; got {mask!r}")
        if mask_mode not in get_args(MaskMode):
            raise UserError(f"mask_mode must be one of {', '.join(get_args(MaskMode))}; got {mask_mode!r}")
        scale = q_BhNd.shape[-1] ** -0.5 if scale is None else scale
        return cls(q_BhNd, k_BhNd, v_BhNd, softness, mask, mask_mode, scale, return_weights)

    def allowed(self) -> torch.Tensor:
        """The mask C as (N, N) booleans: True where the query (row) may look at the key (column)."""
        tokens = self.q_BhNd.shape[-2]
        everything = torch.ones(tokens, tokens, dtype=torch.bool, device=self.q_BhNd.device)
        if self.mask == "none":
            return everything
        causal = everything.tril()
        if self.mask == "modified_causal":
            causal[0] = True  # the class token stands first here and sees everything
        return causal

    def additive_mask(self, dtype: torch.dtype) -> torch.Tensor:
        """log(alpha + (1 - alpha) C) as (N, N): what `pre_softmax` adds to the scores."""
        allowed = self.allowed()
        softness = torch.as_tensor(self.softness, dtype=dtype, device=allowed.device)
        return torch.where(allowed, torch.zeros((), dtype=dtype, device=allowed.device), softness.log())
