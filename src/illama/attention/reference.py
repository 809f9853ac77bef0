"""The definition of soft-causal attention: plain, slow, exact, differentiable; any device, any dtype."""

from __future__ import annotations

import torch

from illama.attention.request import AttentionRequest


def why_not(request: AttentionRequest) -> str | None:
    """The reference serves every request."""
    return None


def pays(request: AttentionRequest) -> bool:
    """Where no other backend does."""
    return True


def run(request: AttentionRequest) -> torch.Tensor:
    """Eq. 2 (`post_softmax`) or Eq. 1 with log-softness (`pre_softmax`), written out."""
    return weights(request).to(request.v_BhNd.dtype) @ request.v_BhNd


def weights(request: AttentionRequest) -> torch.Tensor:
    """The matrix that multiplies v, (B, h, M, N) in at least float32: after the softmax and after the mask."""
    q_BhMd, k_BhNd = request.rotated()
    scores_BhMN = (q_BhMd * request.scale) @ k_BhNd.transpose(-2, -1)
    # Half precision keeps too few digits for a sum over hundreds of exponentials.
    exact = torch.promote_types(scores_BhMN.dtype, torch.float32)
    if request.sees_everything:
        return scores_BhMN.softmax(dim=-1, dtype=exact)
    if request.mask_mode == "pre_softmax":
        return (scores_BhMN + request.additive_mask(exact)).softmax(dim=-1, dtype=exact)
    softness = torch.as_tensor(request.softness, dtype=exact, device=scores_BhMN.device)
    factor_MN = torch.where(request.allowed(), torch.ones((), dtype=exact, device=softness.device), softness)
    return scores_BhMN.softmax(dim=-1, dtype=exact) * factor_MN
