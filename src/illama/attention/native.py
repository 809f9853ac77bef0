"""Soft-causal attention on the CPU by compiled kernels (`illama.native`): Eq. 2, forward and backward, in float32.

A head's keys and values stay in the cache; rotation happens as they are read, rows of scores never leave it.
"""

from __future__ import annotations

import torch

from illama import native
from illama.attention import reference
from illama.attention.request import AttentionRequest


def why_not(request: AttentionRequest) -> str | None:
    """Why the kernels cannot serve a request; None when they can."""
    query = request.q_BhNd
    if torch.compiler.is_compiling():  # before anything that a compiler would have to follow
        return "it is for eager mode"
    if query.device.type != "cpu":
        return f"its kernels run on the CPU, the tensors are on {query.device.type}"
    if request.mask == "none" or request.mask_mode != "post_softmax":
        return "it masks after the softmax (mask_mode post_softmax with a mask) and nothing else"
    if not request.complete:
        return "it serves self-attention of all tokens, or one query" if query.shape[-2] > 1 else None
    if query.dtype not in native.DTYPES:
        return f"it computes in float32 and bfloat16, not {query.dtype}"
    if native.why_not() is not None:
        return f"there are no compiled kernels: {native.why_not()}"
    if not native.serves(*_tensors(request)):
        return "it serves plain tensors in eager mode"
    return None


def pays(request: AttentionRequest) -> bool:
    """With more than one query (docs/kernels.md); one is a row of scores, for which torch's operators do."""
    return request.q_BhNd.shape[-2] > 1


def run(request: AttentionRequest) -> torch.Tensor:
    """Attended values (B, h, N, d), stored as (B, N, h, d)."""
    if request.q_BhNd.shape[-2] == 1:
        return reference.run(request)
    packed, rope = request.packed, request.rope
    if packed is None:
        packed = torch.stack([t.transpose(1, 2) for t in (request.q_BhNd, request.k_BhNd, request.v_BhNd)], dim=2)
    if rope is not None:
        rope = rope[0].float().contiguous(), rope[1].float().contiguous()

    def formula(qkv_BN3hd: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4)
        alike = AttentionRequest(q, k, v, request.softness, request.mask, request.mask_mode, request.scale, rope)
        return reference.run(alike)

    modified = request.mask == "modified_causal"
    return native.attend(packed, float(request.softness), rope, request.scale, modified, formula)


def _tensors(request: AttentionRequest) -> tuple[torch.Tensor, ...]:
    return (request.q_BhNd, request.k_BhNd, request.v_BhNd) if request.packed is None else (request.packed,)
