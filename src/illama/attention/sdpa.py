"""torch's scaled_dot_product_attention, where its mathematics is ours: no mask, or the mask before the softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from illama.attention.request import AttentionRequest


def why_not(request: AttentionRequest) -> str | None:
    """Why SDPA cannot serve a request; None when it can."""
    if request.return_weights:
        return "it never forms the attention weights"
    if request.mask != "none" and request.mask_mode == "post_softmax":
        return "it cannot mask after the softmax (mask_mode post_softmax)"
    return None


def run(request: AttentionRequest) -> torch.Tensor:
    """SDPA with the cheapest description of the mask."""
    q, k, v, scale = request.q_BhNd, request.k_BhNd, request.v_BhNd, request.scale
    if request.mask == "none":
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    known = not isinstance(request.softness, torch.Tensor)
    if known and request.softness == 1.0:
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if known and request.softness == 0.0 and request.mask == "causal":
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=request.additive_mask(q.dtype), scale=scale)
