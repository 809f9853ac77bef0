"""The definition of soft-causal attention: plain, slow, exact, differentiable; any device, any dtype."""

from __future__ import annotations

import torch

from illama.attention.request import AttentionRequest


def why_not(request: AttentionRequest) -> str | None:
    """The reference serves every request."""
    return None


def run(request: AttentionRequest) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Eq. 2 (`post_softmax`) or Eq. 1 with log-softness (`pre_softmax`), written out."""
    scores_BhNN = (request.q_BhNd * request.scale) @ request.k_BhNd.transpose(-2, -1)
    # Half precision keeps too few digits for a sum over hundreds of exponentials.
    exact = torch.promote_types(scores_BhNN.dtype, torch.float32)
    if request.mask_mode == "pre_softmax" and request.mask != "none":
        scores_BhNN = scores_BhNN + request.additive_mask(exact)
    weights_BhNN = scores_BhNN.softmax(dim=-1, dtype=exact)
    if request.mask_mode == "post_softmax" and request.mask != "none":
        factor_NN = torch.where(
            request.allowed(),
            torch.ones((), dtype=exact, device=scores_BhNN.device),
            torch.as_tensor(request.softness, dtype=exact, device=scores_BhNN.device),
        )
        weights_BhNN = weights_BhNN * factor_NN
    weights_BhNN = weights_BhNN.to(request.v_BhNd.dtype)
    attended_BhNd = weights_BhNN @ request.v_BhNd
    return (attended_BhNd, weights_BhNN) if request.return_weights else attended_BhNd
