"""Compiled CPU kernels: what a block computes between its matrix products, in one pass each.

Each function takes tensors for which `serves` is true, and is differentiable, twice as well: second derivatives are
formed from torch's operators. They are for eager mode; compilers fuse the plain formulas themselves.

Letters: B batch, h heads, N tokens, d head width, D width.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from illama.native.compiled import keep, kernels, why_not

__all__ = ["attend", "gate", "keep", "kernels", "rms_norm", "serves", "why_not"]

DTYPES = (torch.float32, torch.bfloat16)
_PLAIN = (torch.Tensor, nn.Parameter)  # others, quantized or sharded ones, bring their own operators
_CHUNKS = 32  # of kernels.c
Tables = tuple[torch.Tensor, torch.Tensor]
Formula = Callable[..., torch.Tensor]


def serves(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can compute with these: plain CPU tensors of one type, float32 or bfloat16, in eager mode."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return False
    dtype = tensors[0].dtype
    for tensor in tensors:
        if type(tensor) not in _PLAIN or not tensor.is_cpu or tensor.dtype is not dtype:
            return False
    return (
        dtype in DTYPES
        and tensors[0].numel() > 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0  # fake tensors and counters of operators see torch's own
        and kernels() is not None
    )


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, formula: Formula) -> torch.Tensor:
    """x (..., D) * rsqrt(mean(x^2) + eps), rounded to x's type, times weight (D,); `formula(x, weight)` is the same."""
    if not _learns(x, weight):
        return _normed(x.contiguous(), weight, eps, None)
    return formula(x, weight) if x.dtype != torch.float32 else _RMSNorm.apply(x, weight, eps, formula)


def gate(gate: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
    """SiLU(gate) * value for tensors of one shape; `formula(gate, value)` is the same by torch's operators."""
    if _learns(gate, value):
        return _Gate.apply(gate, value, formula)
    return _gated(gate.contiguous(), value.contiguous())


def attend(
    qkv_BN3hd: torch.Tensor, softness: float, rope: Tables | None, scale: float, modified: bool, formula: Formula
) -> torch.Tensor:
    """Eq. 2 with the causal mask, or the modified one: (B, h, N, d), stored as (B, N, h, d).

    Args:
        qkv_BN3hd: Queries, keys and values.
        softness: 0 to 1.
        rope: cos and sin (N, d/2), float32, contiguous; None where q and k come rotated.
        formula: The same by torch's operators, of `qkv_BN3hd`.
    """
    options = _Options(softness, rope, scale, modified)
    if _learns(qkv_BN3hd):
        return _Attend.apply(qkv_BN3hd.contiguous(), options, formula)
    return _attended(qkv_BN3hd.contiguous(), options, None)


def _learns(*tensors: torch.Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _at(tensor: torch.Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _call(name: str, *arguments: Any) -> int:
    """A function of kernels.c, which a profiler sees as `illama::NAME`."""
    function = getattr(kernels(), name)
    if not torch.autograd._profiler_enabled():
        return function(*arguments)
    with torch.profiler.record_function(f"illama::{name}"):
        return function(*arguments)


def _again(formula: Formula, grad: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Gradients by torch's operators, for somebody who differentiates a second time."""
    wanted = [t for t in inputs if t.requires_grad]
    gradients = iter(torch.autograd.grad(formula(*inputs), wanted, grad, create_graph=True))
    return tuple(next(gradients) if t.requires_grad else None for t in inputs)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, formula: Formula) -> torch.Tensor:
        factors = torch.empty(x.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(x, weight, factors)
        ctx.formula = formula
        return _normed(x.contiguous(), weight, eps, factors)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight, factors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad, x, weight), None, None
        x, grad, width = x.contiguous(), grad.contiguous(), x.shape[-1]
        dx, d_weight, shares = torch.empty_like(x), torch.empty_like(weight), x.new_empty(_CHUNKS, width)
        tensors = (grad, x, weight.contiguous(), factors, dx, d_weight, shares)
        _call("rms_norm_backward", *map(_at, tensors), x.numel() // width, width, torch.get_num_threads())
        return dx, d_weight, None, None


def _normed(x: torch.Tensor, weight: torch.Tensor, eps: float, factors: torch.Tensor | None) -> torch.Tensor:
    y, width, half = torch.empty_like(x), x.shape[-1], x.dtype == torch.bfloat16
    tensors = (x, weight.contiguous(), y, factors)
    _call("rms_norm_forward", *map(_at, tensors), x.numel() // width, width, eps, half, torch.get_num_threads())
    return y


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: torch.Tensor, value: torch.Tensor, formula: Formula) -> torch.Tensor:
        ctx.save_for_backward(gate, value)
        ctx.formula = formula
        return _gated(gate.contiguous(), value.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        gate, value = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad, gate, value), None
        tensors = (grad.contiguous(), gate.contiguous(), value.contiguous(), *map(torch.empty_like, (gate, value)))
        half = gate.dtype == torch.bfloat16
        _call("gate_backward", *map(_at, tensors), gate.numel(), half, torch.get_num_threads())
        return tensors[3], tensors[4], None


def _gated(gate: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    y, half = torch.empty_like(gate), gate.dtype == torch.bfloat16
    _call("gate_forward", _at(gate), _at(value), _at(y), gate.numel(), half, torch.get_num_threads())
    return y


class _Request(ctypes.Structure):
    """`attention_t` of kernels.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "tokens", "width")),
        ("qkv", ctypes.c_int64 * 4),
        ("out", ctypes.c_int64 * 3),
        ("grad", ctypes.c_int64 * 3),
        ("scale", ctypes.c_float),
        ("softness", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("half", "modified", "threads")),
    )


class _Options(NamedTuple):
    softness: float
    rope: Tables | None
    scale: float
    modified: bool


def _request(
    qkv_BN3hd: torch.Tensor, options: _Options, out_BhNd: torch.Tensor, grad_BhNd: torch.Tensor | None = None
) -> Any:
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    strides = (ctypes.c_int64 * 4)(*qkv_BN3hd.stride()[:4])
    half = qkv_BN3hd.dtype == torch.bfloat16
    return ctypes.byref(
        _Request(
            batch, heads, tokens, width, strides, _strides(out_BhNd), _strides(grad_BhNd),
            options.scale, options.softness, half, options.modified, torch.get_num_threads(),
        )
    )  # fmt: skip


def _strides(x_BhNd: torch.Tensor | None) -> Any:
    """Those of batch, token and head."""
    strides = (0, 0, 0) if x_BhNd is None else (x_BhNd.stride(0), x_BhNd.stride(2), x_BhNd.stride(1))
    return (ctypes.c_int64 * 3)(*strides)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv_BN3hd: torch.Tensor, options: _Options, formula: Formula) -> torch.Tensor:
        batch, tokens, _, heads, _ = qkv_BN3hd.shape
        lse_BhN = torch.empty(batch, heads, tokens)
        out_BhNd = _attended(qkv_BN3hd, options, lse_BhN)
        ctx.save_for_backward(qkv_BN3hd, out_BhNd, lse_BhN)
        ctx.options, ctx.formula = options, formula
        return out_BhNd

    @staticmethod
    def backward(ctx: Any, grad_BhNd: torch.Tensor) -> Any:
        qkv_BN3hd, out_BhNd, lse_BhN = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_again(ctx.formula, grad_BhNd, qkv_BN3hd), None, None
        if grad_BhNd.stride(-1) != 1:  # that of a sum, for instance, is one number with strides 0
            grad_BhNd = grad_BhNd.contiguous()
        d_qkv = torch.empty_like(qkv_BN3hd)
        tensors = (grad_BhNd, qkv_BN3hd, *_tables(ctx.options), out_BhNd, lse_BhN, d_qkv)
        request = _request(qkv_BN3hd, ctx.options, out_BhNd, grad_BhNd)
        _raise_if(_call("attention_backward", request, *map(_at, tensors)))
        return d_qkv, None, None


def _tables(options: _Options) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (None, None) if options.rope is None else options.rope


def _attended(qkv_BN3hd: torch.Tensor, options: _Options, lse_BhN: torch.Tensor | None) -> torch.Tensor:
    batch, tokens, _, heads, width = qkv_BN3hd.shape
    out_BhNd = qkv_BN3hd.new_empty(batch, tokens, heads, width).transpose(1, 2)
    tensors = (qkv_BN3hd, *_tables(options), out_BhNd, lse_BhN)
    _raise_if(_call("attention_forward", _request(qkv_BN3hd, options, out_BhNd), *map(_at, tensors)))
    return out_BhNd


def _raise_if(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for the scores of one head")
