"""The one door to attention: `soft_causal_attention` and its backends.

Letters: B batch, h heads, N tokens, d head width.
"""

from __future__ import annotations

from types import ModuleType
from typing import Literal, overload

import torch

from illama.attention import reference, sdpa
from illama.attention.request import AttentionRequest
from illama.errors import UserError
from illama.models.config import Mask, MaskMode
from illama.registry import Registry

__all__ = ["BACKENDS", "AttentionRequest", "choose_backend", "soft_causal_attention"]

# In the order in which "auto" asks them. A backend is a module with `why_not(request)` and `run(request)`.
BACKENDS: Registry[ModuleType] = Registry("attention backend", {"sdpa": sdpa, "reference": reference})


@overload
def soft_causal_attention(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    v_BhNd: torch.Tensor,
    softness: float | torch.Tensor,
    *,
    mask: Mask = ...,
    mask_mode: MaskMode = ...,
    backend: str = ...,
    scale: float | None = ...,
    return_weights: Literal[False] = ...,
) -> torch.Tensor: ...


@overload
def soft_causal_attention(
    q_BhNd: torch.Tensor,
    k_BhNd: torch.Tensor,
    v_BhNd: torch.Tensor,
    softness: float | torch.Tensor,
    *,
    mask: Mask = ...,
    mask_mode: MaskMode = ...,
    backend: str = ...,
    scale: float | None = ...,
    return_weights: Literal[True],
) -> tuple[torch.Tensor, torch.Tensor]: ...


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
    return_weights: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Softly masked self-attention: the paper's Eq. 2, or Eq. 1 with `pre_softmax`.

    With C the mask (1 where a query may look, 0 elsewhere), alpha the softness and A = q k^T * scale:
    `post_softmax` gives (softmax(A) * (alpha + (1 - alpha) C)) v, whose rows do not sum to one;
    `pre_softmax` gives softmax(A + log(alpha + (1 - alpha) C)) v, strictly causal at alpha = 0.

    Args:
        q_BhNd, k_BhNd, v_BhNd: Same shape and dtype; rotary embedding already applied to q and k.
        softness: How much of the masked tokens is seen, 0 (causal) to 1 (bidirectional), as a number or a
            0-d tensor on the same device. It is not trained: no gradient flows into it.
        mask: "causal", "none" (no mask, softness has no effect) or "modified_causal" (causal, row 0 complete).
        mask_mode: Whether the mask multiplies the softmax's result or enters its argument.
        backend: A name of `BACKENDS`, or "auto" for the first that can serve this request.
        scale: Factor of the scores; d^(-1/2) when None.
        return_weights: Whether to return the matrix that multiplies v as well; only `reference` has it.

    Returns:
        Attended values (B, h, N, d) in the dtype of v; with `return_weights` also the weights (B, h, N, N).

    Raises:
        UserError: Shapes differ, the softness is outside 0 to 1, or the named backend cannot serve this request.
    """
    request = AttentionRequest.of(q_BhNd, k_BhNd, v_BhNd, softness, mask, mask_mode, scale, return_weights)
    return BACKENDS[choose_backend(request, backend)].run(request)


def choose_backend(request: AttentionRequest, backend: str = "auto") -> str:
    """Name of the backend that serves a request.

    Raises:
        UserError: The backend asked for by name is unknown or cannot serve it; the message says why.
    """
    if backend == "auto":
        return next(name for name, module in BACKENDS.items() if module.why_not(request) is None)
    reason = BACKENDS[backend].why_not(request)
    if reason is not None:
        raise UserError(f'attention backend "{backend}" cannot serve this request: {reason}; use "auto"')
    return backend
