"""Soft-causal attention in blocks of heads and queries: for the CPU, and for any device without Triton.

A block of queries forms its scores against all keys, for the denominator of Eq. 2 runs over all of them. At softness
0 the product with v, and in the backward pass the products with the gradient, stop at the block's end. Nothing of
size N x N outlives a block: the backward pass forms the block's softmax again from q and k.

Letters: B batch, h heads, N tokens, d head width, G = B h, R rows of a block, n keys that a
block multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from illama.attention import reference
from illama.attention.request import AttentionRequest, Tables, rotate_into
from illama.device.linear import linear_kernel, onednn_product
from illama.errors import UserError

Table = torch.Tensor | None
_FEW, _FEW_TO_LEARN = 64, 400  # tokens, docs/kernels.md


def why_not(request: AttentionRequest) -> str | None:
    """Why blocks cannot serve a request; None when they can."""
    if request.q_BhNd.shape[-2] == 1:
        return None
    if torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return "it cannot be traced by torch.jit or transformed by torch.func"
    if not request.complete:
        return "it serves self-attention of all tokens, or one query"
    if request.mask != "causal" or request.mask_mode != "post_softmax":
        return "it serves mask causal with mask_mode post_softmax only"
    return None


def pays(request: AttentionRequest) -> bool:
    """With many tokens, but not in an exported model, which knows no operators of ours.

    With few it costs less on a CPU to keep the weights for the backward pass than to form them again, and a compiler
    fuses mask and softmax into one pass.
    """
    if torch.compiler.is_exporting():
        return False
    learns = torch.is_grad_enabled() and request.v_BhNd.requires_grad
    few = _FEW_TO_LEARN if learns or torch.compiler.is_compiling() else _FEW
    return request.q_BhNd.device.type == "cuda" or request.k_BhNd.shape[-2] >= few


def run(request: AttentionRequest) -> torch.Tensor:
    """Eq. 2 in blocks; one query is a block that needs no cutting."""
    if request.q_BhNd.shape[-2] == 1:
        return reference.run(request)
    qkv_BN3hd, softness, rope = request.packed, request.softness, request.rope
    if qkv_BN3hd is None:
        qkv_BN3hd = torch.stack([t.transpose(1, 2) for t in (request.q_BhNd, request.k_BhNd, request.v_BhNd)], dim=2)
    if not isinstance(softness, torch.Tensor):
        exact = torch.promote_types(qkv_BN3hd.dtype, torch.float32)
        softness = torch.full((), softness, dtype=exact, device=qkv_BN3hd.device)
    cos, sin = (None, None) if rope is None else rope
    attend = torch.ops.illama.blocked_attention if torch.compiler.is_compiling() else _Eager.apply
    return attend(qkv_BN3hd, softness, cos, sin, request.scale)[0]


def attend(
    qkv_BN3hd: torch.Tensor, softness: torch.Tensor, rope: Tables | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward pass.

    Returns:
        The attended values (B, h, N, d), stored as (B, N, h, d), the order in which the projection reads them; and
        q (rotated and scaled), k (rotated) and v, (3, G, N, d), for the backward pass.
    """
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    qkv_3GNd = _by_head(qkv_BN3hd, rope, scale)
    q_GNd, k_GNd, v_GNd = qkv_3GNd
    mask, cut = _Mask(softness), _Cut(q_GNd)
    out_GNd = cut.joined([_attend_group(mask, cut, *group) for group in cut.groups(q_GNd, k_GNd, v_GNd.mT)])
    out_BNhd = out_GNd.view(batch, heads, tokens, width).transpose(1, 2).contiguous()
    return out_BNhd.transpose(1, 2), qkv_3GNd


def _attend_group(mask: _Mask, cut: _Cut, q_Nd: torch.Tensor, k_Nd: torch.Tensor, v_dN: torch.Tensor) -> torch.Tensor:
    """The forward pass of some heads."""
    attended = []
    for start, end in cut.rows:
        seen = mask.seen(end, cut.tokens)
        weights_Rn = mask.apply_(cut.softmax(q_Nd[..., start:end, :], k_Nd)[..., :seen], start)
        attended.append(cut.product(weights_Rn, v_dN[..., :seen]))
    return _along(attended, -2)


def attend_backward(
    grad_BhNd: torch.Tensor,
    out_BhNd: torch.Tensor,
    qkv_3GNd: torch.Tensor,
    softness: torch.Tensor,
    rope: Tables | None,
    scale: float,
) -> torch.Tensor:
    """The gradient of the packed q, k, v: (B, N, 3, h, d).

    With P the softmax, F the mask's factors, O the output and D its gradient: dV = (P F)^T D, dS = P (F (D V^T) - s)
    with s the row sums of D O. Under softness 0 the future's part of F (D V^T) is zero, but dS is -P s there and not
    zero: the denominator sees the future.
    """
    q_GNd, k_GNd, v_GNd = qkv_3GNd
    grad_GNd, sums_GN1 = grad_BhNd.flatten(0, 1), (grad_BhNd * out_BhNd).sum(-1, keepdim=True).flatten(0, 1)
    mask, cut = _Mask(softness), _Cut(q_GNd)
    groups = cut.groups(q_GNd, k_GNd, v_GNd, grad_GNd, sums_GN1)
    by_group = [_backward_group(mask, cut, *group) for group in groups]
    return _packed([cut.joined(part) for part in zip(*by_group, strict=True)], grad_BhNd.shape, rope, scale)


def _backward_group(
    mask: _Mask,
    cut: _Cut,
    q_Nd: torch.Tensor,
    k_Nd: torch.Tensor,
    v_Nd: torch.Tensor,
    grad_Nd: torch.Tensor,
    sums_N1: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of some heads."""
    dqs: list[torch.Tensor] = []
    dk_Nd = dv_Nd = None
    for start, end in reversed(cut.rows):  # the last block sees all keys: it makes what the others add to
        seen, rows = mask.seen(end, cut.tokens), slice(start, end)
        weights_RN = cut.softmax(q_Nd[..., rows, :], k_Nd)
        sums_R1 = sums_N1[..., rows, :]
        inner_Rn = mask.apply_(cut.product(grad_Nd[..., rows, :], v_Nd[..., :seen, :]), start).sub_(sums_R1)
        if seen < cut.tokens:
            scores_grad_RN = torch.cat((inner_Rn, -sums_R1.expand(*inner_Rn.shape[:-1], cut.tokens - seen)), -1)
        else:
            scores_grad_RN = inner_Rn
        scores_grad_RN.mul_(weights_RN)
        weights_Rn = mask.apply_(weights_RN[..., :seen], start)
        to_v = cut.product_over_rows(weights_Rn, grad_Nd[..., rows, :])
        to_k = cut.product_over_rows(scores_grad_RN, q_Nd[..., rows, :])
        dqs.insert(0, cut.product(scores_grad_RN, k_Nd.mT))
        if dk_Nd is None or dv_Nd is None:
            dk_Nd, dv_Nd = to_k, to_v
        else:
            dk_Nd += to_k
            dv_Nd[..., :seen, :] += to_v
    assert dk_Nd is not None
    assert dv_Nd is not None
    return _along(dqs, -2), dk_Nd, dv_Nd


def _along(parts: Sequence[torch.Tensor], dim: int) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _by_head(qkv_BN3hd: torch.Tensor, rope: Tables | None, scale: float) -> torch.Tensor:
    """q rotated and scaled, k rotated, and v, as matrices of one head each: (3, G, N, d)."""
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    by_head = qkv_BN3hd.new_empty(3, batch, heads, tokens, width)
    q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4)
    rotate_into(by_head[0], q, rope, scale)
    rotate_into(by_head[1], k, rope)
    by_head[2].copy_(v)
    return by_head.flatten(1, 2)


def _packed(grads_GNd: Sequence[torch.Tensor], shape: torch.Size, rope: Tables | None, scale: float) -> torch.Tensor:
    """Gradients by head as the gradient of the packed tensor: rotated back, q's scaled."""
    dq, dk, dv = (t.unflatten(0, shape[:2]) for t in grads_GNd)
    batch, heads, tokens, width = shape
    packed_BN3hd = dv.new_empty(batch, tokens, 3, heads, width)
    to_q, to_k, to_v = packed_BN3hd.permute(2, 0, 3, 1, 4)
    back = None if rope is None else (rope[0], -rope[1])
    rotate_into(to_q, dq, back, scale)
    rotate_into(to_k, dk, back)
    to_v.copy_(dv)
    return packed_BN3hd


class _Mask:
    """The factors alpha + (1 - alpha) C of Eq. 2, applied to blocks of rows.

    On the CPU the softness is a number here, and 0 lets the blocks stop at their end. Elsewhere reading it would
    make the host wait for the device: it stays a tensor and the blocks go on to the last key.
    """

    def __init__(self, softness: torch.Tensor) -> None:
        self.softness: Any = float(softness) if softness.device.type == "cpu" else softness
        self.stops = isinstance(self.softness, float) and self.softness == 0.0

    def seen(self, end: int, tokens: int) -> int:
        """How many keys the rows of a block that ends at `end` multiply."""
        return end if self.stops else tokens

    def apply_(self, weights_Rn: torch.Tensor, start: int) -> torch.Tensor:
        """Multiply a block's weights by the factors, in place."""
        end = start + weights_Rn.shape[-2]
        diagonal = weights_Rn[..., start:end]
        if self.stops:
            diagonal.tril_()
            return weights_Rn
        hidden = diagonal.new_ones(diagonal.shape[-2:]).triu_(1)
        diagonal.mul_(1 + hidden * (self.softness - 1))
        weights_Rn[..., end:].mul_(self.softness)
        return weights_Rn


class _Cut:
    """How the work is cut: all heads at once in blocks of few rows, or head by head with oneDNN's products.

    torch's batched product runs on MKL, which is slow on some processors (`illama.device.linear`). There, with few
    threads and enough tokens to hide the cost of a call, single products by oneDNN win; rows then hardly need
    cutting, for the scores of one head stay in the cache. Head by head the matrices have no axis G.

    Attributes:
        tokens: N.
        rows: Bounds of the blocks of queries, of nearly equal height.
    """

    ROWS, ROWS_HALF, ROWS_ONE_BY_ONE = 66, 200, 600  # measured, docs/kernels.md
    MOST_SCORES = 1 << 20
    FEWEST_TOKENS, MOST_THREADS = 400, 4

    def __init__(self, q_GNd: torch.Tensor) -> None:
        heads, self.tokens = q_GNd.shape[:2]
        self.one_by_one = (
            self.tokens >= self.FEWEST_TOKENS
            and q_GNd.device.type == "cpu"
            and q_GNd.dtype == torch.float32
            and torch.get_num_threads() <= self.MOST_THREADS
            and linear_kernel("forward", self.tokens, q_GNd[0].numel()) == "onednn"
        )
        rows = self.ROWS_HALF if q_GNd.dtype.itemsize == 2 else self.ROWS
        count = max(1, round(self.tokens / (self.ROWS_ONE_BY_ONE if self.one_by_one else rows)))
        height = -(-self.tokens // count)
        self.rows = [(start, min(start + height, self.tokens)) for start in range(0, self.tokens, height)]
        self.heads = 1 if self.one_by_one else min(heads, max(1, self.MOST_SCORES // (height * self.tokens)))
        self.memory = q_GNd.new_empty(2, self.heads * height * self.tokens)

    def groups(self, *tensors_G: torch.Tensor) -> Iterable[tuple[torch.Tensor, ...]]:
        """What is worked on together: everything, or the matrices of one head after the other."""
        cut = (t.unbind(0) if self.one_by_one else t.split(self.heads) for t in tensors_G)
        return zip(*cut, strict=True)

    def joined(self, groups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The results of the groups with the axis G."""
        return torch.stack(list(groups)) if self.one_by_one else _along(groups, 0)

    def product(self, a_MK: torch.Tensor, b_NK: torch.Tensor) -> torch.Tensor:
        """a b^T, ([G,] M, N)."""
        return onednn_product(a_MK, b_NK) if self.one_by_one else torch.bmm(a_MK, b_NK.mT)

    def product_over_rows(self, a_RM: torch.Tensor, b_RK: torch.Tensor) -> torch.Tensor:
        """a^T b, ([G,] M, K)."""
        return onednn_product(b_RK.mT, a_RM.mT).mT if self.one_by_one else torch.bmm(a_RM.mT, b_RK)

    def softmax(self, q_Rd: torch.Tensor, k_Nd: torch.Tensor) -> torch.Tensor:
        """softmax(q k^T) over all keys; the sum runs in at least float32. The next call writes to the same memory."""
        shape = (*q_Rd.shape[:-1], self.tokens)
        scores, weights = (memory[: math.prod(shape)].view(shape) for memory in self.memory)
        if self.one_by_one:
            scores = onednn_product(q_Rd, k_Nd)
        else:
            torch.bmm(q_Rd, k_Nd.mT, out=scores)
        return torch.softmax(scores, dim=-1, out=weights)


class _Eager(torch.autograd.Function):
    """Eager mode: torch's own operators around one node of the graph."""

    @staticmethod
    def forward(
        ctx: Any, qkv: torch.Tensor, softness: torch.Tensor, cos: Table, sin: Table, scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out, by_head = attend(qkv, softness, _tables(cos, sin), scale)
        _setup_context(ctx, (qkv, softness, cos, sin, scale), (out, by_head))
        ctx.mark_non_differentiable(by_head)
        return out, by_head

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            raise UserError('the blocked attention has no second derivative; give attention_backend="reference"')
        out, by_head, softness, cos, sin = ctx.saved_tensors
        return attend_backward(grad, out, by_head, softness, _tables(cos, sin), ctx.scale), None, None, None, None


# Compilers take the same two functions as operators: how many keys a block multiplies depends on the softness, which
# is known only when they run.
@torch.library.custom_op("illama::blocked_attention", mutates_args=())
def _attend_op(
    qkv: torch.Tensor, softness: torch.Tensor, cos: Table, sin: Table, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    return attend(qkv, softness, _tables(cos, sin), scale)


@_attend_op.register_fake
def _(
    qkv: torch.Tensor, softness: torch.Tensor, cos: Table, sin: Table, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, tokens, _, heads, width = qkv.shape
    by_head = qkv.new_empty(3, batch * heads, tokens, width)
    return qkv.new_empty(batch, tokens, heads, width).transpose(1, 2), by_head


@torch.library.custom_op("illama::blocked_attention_backward", mutates_args=())
def _backward_op(
    grad: torch.Tensor,
    out: torch.Tensor,
    by_head: torch.Tensor,
    softness: torch.Tensor,
    cos: Table,
    sin: Table,
    scale: float,
) -> torch.Tensor:
    return attend_backward(grad, out, by_head, softness, _tables(cos, sin), scale)


@_backward_op.register_fake
def _(
    grad: torch.Tensor,
    out: torch.Tensor,
    by_head: torch.Tensor,
    softness: torch.Tensor,
    cos: Table,
    sin: Table,
    scale: float,
) -> torch.Tensor:
    batch, heads, tokens, width = grad.shape
    return grad.new_empty(batch, tokens, 3, heads, width)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    _, softness, cos, sin, ctx.scale = inputs
    ctx.save_for_backward(*output, softness, cos, sin)


def _op_backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> Any:
    out, by_head, softness, cos, sin = ctx.saved_tensors
    return _backward_op(grad, out, by_head, softness, cos, sin, ctx.scale), None, None, None, None


def _tables(cos: Table, sin: Table) -> Tables | None:
    return None if cos is None or sin is None else (cos, sin)


_attend_op.register_autograd(_op_backward, setup_context=_setup_context)
