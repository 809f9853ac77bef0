"""torch's scaled_dot_product_attention, where its mathematics is ours: no mask, or the mask before the softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from illama.attention.request import AttentionRequest


def why_not(request: AttentionRequest) -> str | None:
    """Why SDPA cannot serve a request; None when it can."""
    if not request.sees_everything and request.mask_mode == "post_softmax":
        return "it cannot mask after the softmax (mask_mode post_softmax)"
    return None


def pays(request: AttentionRequest) -> bool:
    """On CPUs in half precision torch's plain operators are faster than its fused attention."""
    return request.q_BhNd.device.type == "cuda" or request.q_BhNd.dtype.itemsize > 2


def run(request: AttentionRequest) -> torch.Tensor:
    """SDPA with the cheapest description of the mask."""
    (q, k), v, scale = request.rotated(), request.v_BhNd, request.scale
    is_number = not isinstance(request.softness, torch.Tensor)
    if request.sees_everything or (is_number and request.softness == 1.0):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    if is_number and request.softness == 0.0 and request.mask == "causal" and request.complete:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=request.additive_mask(q.dtype), scale=scale)
