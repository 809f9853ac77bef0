"""The one door to attention: `soft_causal_attention` and its backends.

Letters: B batch, h heads, M queries, N tokens, d head width.
"""

from __future__ import annotations

from types import ModuleType

import torch

from illama.attention import blocked, native, reference, sdpa, triton
from illama.attention.request import AttentionRequest, Tables
from illama.errors import UserError
from illama.models.config import Mask, MaskMode
from illama.registry import Registry

__all__ = [
    "BACKENDS",
    "AttentionRequest",
    "Tables",
    "attention_weights",
    "choose_backend",
    "soft_causal_attention",
    "soft_causal_attention_qkvpacked",
]

# A backend is a module with `why_not(request)`, `pays(request)` and `run(request)`; "auto" asks in this order.
BACKENDS: Registry[ModuleType] = Registry(
    "attention backend", {"triton": triton, "native": native, "sdpa": sdpa, "blocked": blocked, "reference": reference}
)


def soft_causal_attention(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    v_BhNd: torch.Tensor,
    softness: float | torch.Tensor,
    *,
    mask: Mask = "causal",
    mask_mode: MaskMode = "post_softmax",
    backend: str = "auto",
    scale: float | None = None,
    rope: Tables | None = None,
    query_start: int = 0,
) -> torch.Tensor:
    """Softly masked self-attention: the paper's Eq. 2, or Eq. 1 with `pre_softmax`.

    With C the mask (1 where a query may look, 0 elsewhere), alpha the softness and A = q k^T * scale:
    `post_softmax` gives (softmax(A) * (alpha + (1 - alpha) C)) v, whose rows do not sum to one;
    `pre_softmax` gives softmax(A + log(alpha + (1 - alpha) C)) v, strictly causal at alpha = 0.

    Args:
        q_BhNd, k_BhNd, v_BhNd: Same shape and dtype. q may have fewer rows (B, h, M, d), see `query_start`.
        softness: How much of the masked tokens is seen, 0 (causal) to 1 (bidirectional), as a number or a
            0-d tensor on the same device. It is not trained: no gradient flows into it.
        mask: "causal", "none" (no mask, softness has no effect) or "modified_causal" (causal, row 0 complete).
        mask_mode: Whether the mask multiplies the softmax's result or enters its argument.
        backend: A name of `BACKENDS`, or "auto" for the fastest that can serve this request.
        scale: Factor of the scores; d^(-1/2) when None.
        rope: cos and sin (N, d/2) of the rotary embedding; None when q and k are rotated already or need none.
        query_start: Index of the token that the first row of q belongs to.

    Returns:
        Attended values (B, h, M, d) in the dtype of v.

    Raises:
        UserError: Shapes differ, the softness is outside 0 to 1, or the named backend cannot serve this request.
    """
    request = AttentionRequest(
        q_BhNd, k_BhNd, v_BhNd, softness, mask, mask_mode, _scale(scale, q_BhNd), rope, None, query_start
    )
    return BACKENDS[choose_backend(request, backend)].run(request)


def soft_causal_attention_qkvpacked(
    qkv_BN3hd: torch.Tensor,
    softness: float | torch.Tensor,
    *,
    mask: Mask = "causal",
    mask_mode: MaskMode = "post_softmax",
    backend: str = "auto",
    scale: float | None = None,
    rope: Tables | None = None,
) -> torch.Tensor:
    """`soft_causal_attention` of q, k and v that come in one tensor (B, N, 3, h, d), as a packed projection makes it.

    A backend may read them where they lie and write their gradients into one tensor. Returns (B, h, N, d).
    """
    q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4)
    request = AttentionRequest(q, k, v, softness, mask, mask_mode, _scale(scale, q), rope, qkv_BN3hd)
    return BACKENDS[choose_backend(request, backend)].run(request)


def attention_weights(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    softness: float | torch.Tensor,
    *,
    mask: Mask = "causal",
    mask_mode: MaskMode = "post_softmax",
    scale: float | None = None,
    rope: Tables | None = None,
) -> torch.Tensor:
    """The matrix that multiplies v, (B, h, N, N) in at least float32: after the softmax and after the mask.

    The arguments are those of `soft_causal_attention`. The reference computes it, for no other backend forms it.
    """
    request = AttentionRequest(q_BhNd, k_BhNd, k_BhNd, softness, mask, mask_mode, _scale(scale, q_BhNd), rope)
    return reference.weights(request)


def choose_backend(request: AttentionRequest, backend: str = "auto") -> str:
    """Name of the backend that serves a request.

    "auto" takes the first of `BACKENDS` that can and pays: that measured fastest there (docs/kernels.md). While a model
    is exported these are operators of torch alone, which every other program knows.

    Raises:
        UserError: The backend asked for by name is unknown or cannot serve it; the message says why.
    """
    if backend == "auto":
        return next(
            name for name, module in BACKENDS.items() if module.why_not(request) is None and module.pays(request)
        )
    reason = BACKENDS[backend].why_not(request)
    if reason is not None:
        raise UserError(f'attention backend "{backend}" cannot serve this request: {reason}; use "auto"')
    return backend


def _scale(scale: float | None, q_BhNd: torch.Tensor) -> float:
    return q_BhNd.shape[-1] ** -0.5 if scale is None else scale
