"""Fused soft-causal attention on NVIDIA GPUs: Eq. 2 forward and backward without a matrix of N x N in memory.

The kernels are two operators of torch, `illama::triton_attention` for separate q, k, v and
`illama::triton_attention_packed` for one projection (B, N, 3, h, d), whose gradient is one tensor as well. Both
rotate q and k inside when tables are given, and both read the softness on the device: changing it neither waits nor
recompiles. Triton itself is imported when an operator first runs.
"""

from __future__ import annotations

import importlib.util
import os

import torch

from illama.attention import reference
from illama.attention.request import AttentionRequest

HEAD_DIMS = (32, 128)  # smallest and largest head width
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_INSTALLED = importlib.util.find_spec("triton") is not None
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def why_not(request: AttentionRequest) -> str | None:
    """Why the kernels cannot serve a request; None when they can."""
    if request.q_BhNd.shape[-2] == 1:
        return _why_not_here(request.q_BhNd.device)
    return _why_not_here(request.q_BhNd.device) or _why_not_this(request)


def pays(request: AttentionRequest) -> bool:
    """On a GPU; the interpreter is for tests, and an exported model knows no operators of ours."""
    return request.q_BhNd.device.type == "cuda" and not torch.compiler.is_exporting()


def _why_not_here(device: torch.device) -> str | None:
    if not _INSTALLED:
        return 'triton is not installed (pip install "illama[kernels]")'
    if device.type != "cuda" and not (_INTERPRETED and device.type == "cpu"):
        return f"its kernels run on CUDA devices, the tensors are on {device.type}"
    return None


def _why_not_this(request: AttentionRequest) -> str | None:
    query = request.q_BhNd
    head_dim = query.shape[-1]
    if request.mask == "none" or request.mask_mode != "post_softmax":
        return "it masks after the softmax (mask_mode post_softmax with a mask) and nothing else"
    if query.dtype not in DTYPES:
        return f"it computes in bfloat16, float16 and float32, not {query.dtype}"
    if not HEAD_DIMS[0] <= head_dim <= HEAD_DIMS[1] or head_dim % 2:
        return f"it serves even head widths from {HEAD_DIMS[0]} to {HEAD_DIMS[1]}, not {head_dim}"
    if not request.complete:
        return "it serves self-attention of all tokens, or one query"
    if not request.scale > 0:
        return f"its scale must be positive, not {request.scale}"
    return None


def run(request: AttentionRequest) -> torch.Tensor:
    """Attended values (B, h, N, d), stored as (B, N, h, d): transpose(1, 2).flatten(2) copies nothing."""
    query = request.q_BhNd
    if query.shape[-2] == 1:  # one row of scores: nothing to fuse
        return reference.run(request)
    if isinstance(request.softness, torch.Tensor):
        softness = request.softness.to(query.device, torch.float32)
    else:  # a fill on the device; a copy of a host number would wait
        softness = torch.full((), request.softness, dtype=torch.float32, device=query.device)
    cos, sin = (None, None) if request.rope is None else (table.contiguous() for table in request.rope)
    options = (softness, cos, sin, request.scale, request.mask == "modified_causal")
    if request.packed is not None:
        out_BhNd, _ = triton_attention_packed(_with_contiguous_channels(request.packed), *options)
    else:
        qkv = (_with_contiguous_channels(t) for t in (request.q_BhNd, request.k_BhNd, request.v_BhNd))
        out_BhNd, _ = triton_attention(*qkv, *options)
    return out_BhNd


def _with_contiguous_channels(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _unpack(qkv_BN3hd: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Views q, k, v (B, h, N, d) of a packed projection."""
    return qkv_BN3hd.permute(2, 0, 3, 1, 4).unbind(0)


def _new_out(like_BhNd: torch.Tensor) -> torch.Tensor:
    batch, heads, tokens, head_dim = like_BhNd.shape
    return like_BhNd.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)


def _new_out_and_lse(q_BhNd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _new_out(q_BhNd), q_BhNd.new_empty(q_BhNd.shape[:3], dtype=torch.float32)


def _rope(cos: torch.Tensor | None, sin: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    return None if cos is None or sin is None else (cos, sin)


@torch.library.custom_op("illama::triton_attention", mutates_args=())
def triton_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softness: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    scale: float,
    modified: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 2 for q, k, v (B, h, N, d) with contiguous channels.

    Args:
        softness: 0-d float32 tensor on the same device.
        cos, sin: Rotation tables (N, d/2), float32, contiguous, for q and k; None where they are rotated already.
        scale: Factor of the scores, positive.
        modified: Whether row 0 sees all keys (mask "modified_causal").

    Returns:
        Attended values (B, h, N, d), stored as (B, N, h, d), and the base-2 log-sum-exp of the scores (B, h, N).
    """
    from illama.attention import triton_launch

    out_BhNd, lse_BhN = _new_out_and_lse(q)
    triton_launch.forward(q, k, v, softness, _rope(cos, sin), scale, modified, out_BhNd, lse_BhN)
    return out_BhNd, lse_BhN


@torch.library.custom_op("illama::triton_attention_backward", mutates_args=())
def triton_attention_backward(
    d_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    softness: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    modified: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v (B, h, N, d), stored as (B, N, h, d)."""
    from illama.attention import triton_launch

    gradients = (_new_out(q), _new_out(q), _new_out(q))
    triton_launch.backward(d_out, q, k, v, softness, _rope(cos, sin), out, lse, scale, modified, gradients)
    return gradients


@torch.library.custom_op("illama::triton_attention_packed", mutates_args=())
def triton_attention_packed(
    qkv: torch.Tensor,
    softness: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    scale: float,
    modified: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`triton_attention` of a packed projection (B, N, 3, h, d), whose gradient is one new tensor of that shape."""
    from illama.attention import triton_launch

    q, k, v = _unpack(qkv)
    out_BhNd, lse_BhN = _new_out_and_lse(q)
    triton_launch.forward(q, k, v, softness, _rope(cos, sin), scale, modified, out_BhNd, lse_BhN)
    return out_BhNd, lse_BhN


@torch.library.custom_op("illama::triton_attention_packed_backward", mutates_args=())
def triton_attention_packed_backward(
    d_out: torch.Tensor,
    qkv: torch.Tensor,
    softness: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    modified: bool,
) -> torch.Tensor:
    """Gradient of the packed projection, (B, N, 3, h, d), contiguous."""
    from illama.attention import triton_launch

    d_qkv = qkv.new_empty(qkv.shape)
    q, k, v = _unpack(qkv)
    d_q, d_k, d_v = _unpack(d_qkv)
    triton_launch.backward(d_out, q, k, v, softness, _rope(cos, sin), out, lse, scale, modified, (d_q, d_k, d_v))
    return d_qkv


# What the operators return, in shape and layout, for tracing; and how their gradients are formed.


@triton_attention.register_fake
def _(q, k, v, softness, cos, sin, scale, modified):  # type: ignore[no-untyped-def]
    return _new_out_and_lse(q)


@triton_attention_backward.register_fake
def _(d_out, q, k, v, softness, cos, sin, out, lse, scale, modified):  # type: ignore[no-untyped-def]
    return _new_out(q), _new_out(q), _new_out(q)


@triton_attention_packed.register_fake
def _(qkv, softness, cos, sin, scale, modified):  # type: ignore[no-untyped-def]
    return _new_out_and_lse(_unpack(qkv)[0])


@triton_attention_packed_backward.register_fake
def _(d_out, qkv, softness, cos, sin, out, lse, scale, modified):  # type: ignore[no-untyped-def]
    return qkv.new_empty(qkv.shape)


def _save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    *tensors, ctx.scale, ctx.modified = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx, d_out, d_lse):  # type: ignore[no-untyped-def]
    gradients = triton_attention_backward(d_out, *ctx.saved_tensors, ctx.scale, ctx.modified)
    return *gradients, None, None, None, None, None


def _differentiate_packed(ctx, d_out, d_lse):  # type: ignore[no-untyped-def]
    d_qkv = triton_attention_packed_backward(d_out, *ctx.saved_tensors, ctx.scale, ctx.modified)
    return d_qkv, None, None, None, None, None


triton_attention.register_autograd(_differentiate, setup_context=_save)
triton_attention_packed.register_autograd(_differentiate_packed, setup_context=_save)
