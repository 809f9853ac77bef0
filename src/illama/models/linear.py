"""The one linear function: y = x W^T + b, by whichever matrix product this machine does faster.

PyTorch gives float32 products on the CPU to MKL. On AMD processors MKL keeps to AVX2, while oneDNN, which PyTorch
brings as well, uses AVX-512: about twice as fast (docs/kernels.md). A short measurement at the first large product
chooses one of the two for the process. Everything else (other devices and dtypes, autocast, compilers, exporters,
small products) is `F.linear` as ever.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from illama.errors import UserError

LinearKernel = Literal["onednn", "mkl"]
ENVIRONMENT = "ILLAMA_LINEAR"  # overrules the measurement

# Below this many multiply-adds the fixed cost of oneDNN's call (12 against 2 microseconds) outweighs its rate; with
# few rows the gradient of the weight is a product with a short sum, where MKL is faster.
SMALLEST, FEWEST_ROWS = 4_000_000, 8
SMALLEST_WEIGHT_GRADIENT, FEWEST_ROWS_WEIGHT_GRADIENT = 7_000_000, 128
# oneDNN must be this much faster in the median of the probes: it is twice as fast or it is not, and noise must not
# decide, for a run that is continued must compute as it began.
_GAIN = 1.3
_PROBES = ((64, 256, 256), (394, 192, 576), (1024, 192, 576))  # rows, inputs, outputs
_ROUNDS = 9

_kept: list[LinearKernel] = []
log = logging.getLogger(__name__)


class Linear(nn.Linear):
    """nn.Linear on the one linear function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N): (..., N), as `F.linear`, differentiable twice."""
    if not _may_choose(x, weight) or linear_kernel() == "mkl":
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias)):
        return _OneDnnLinear.apply(x, weight, bias)
    return onednn_product(x, weight, bias)


def project_rows(layer: nn.Module, x: torch.Tensor, rows: slice) -> torch.Tensor:
    """Some outputs of a linear layer: x (..., K) to (..., len(rows)), without computing the others.

    A layer that is not a plain one is called as it is, then cut.
    """
    if not is_plain(layer):
        return layer(x)[..., rows]
    assert isinstance(layer, Linear)
    return linear(x, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer is nothing but its weight: no adapter, not quantized, no hooks."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    return type(layer) is Linear and not any(hooks)


def linear_kernel() -> LinearKernel:
    """Which library multiplies float32 matrices on the CPU: named by `ILLAMA_LINEAR`, or the faster one."""
    named = os.environ.get(ENVIRONMENT, "auto")
    if named == "auto":
        return _kept[0] if _kept else _faster_kernel()
    if named not in ("onednn", "mkl"):
        raise UserError(f"{ENVIRONMENT} must be onednn, mkl or auto; got {named!r}")
    return named  # type: ignore[return-value]


def keep_linear_kernel(name: LinearKernel) -> None:
    """Stay with the library that a run began with: another one rounds differently."""
    if name == "mkl" or _has_onednn():
        _kept[:] = [name]


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _may_choose(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both libraries could compute this, and it is large enough to matter."""
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and type(weight) in (torch.Tensor, nn.Parameter)  # a quantized or sharded weight brings its own product
        and type(x) in (torch.Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and bool(torch.backends.mkldnn.enabled)
    )


def onednn_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x w^T + b of float32 matrices by oneDNN, not differentiable; transposed views are read as they lie."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class _OneDnnLinear(torch.autograd.Function):
    """oneDNN forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        to_x: torch.Tensor | None
        to_weight: torch.Tensor | None
        if torch.is_grad_enabled():  # somebody differentiates a second time
            to_x, to_weight = torch.matmul(flat_grad, weight), torch.matmul(flat_grad.t(), flat_x)
        else:
            to_x = onednn_product(flat_grad, weight.t()) if needs_x else None
            to_weight = _weight_gradient(flat_grad, flat_x) if needs_weight else None
        return (
            None if to_x is None else to_x.view_as(x),
            to_weight,
            flat_grad.sum(0) if needs_bias else None,
        )


def _weight_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad^T x, (N, K) from (M, N) and (M, K)."""
    rows, outputs, inputs = len(x), grad.shape[1], x.shape[1]
    if rows < FEWEST_ROWS_WEIGHT_GRADIENT or rows * outputs * inputs < SMALLEST_WEIGHT_GRADIENT:
        return torch.matmul(grad.t(), x)
    if outputs > inputs and rows >= 8 * FEWEST_ROWS_WEIGHT_GRADIENT:
        # With the wider factor second oneDNN is faster by more than the transposition costs.
        return onednn_product(x.t(), grad.t()).t().contiguous()
    return onednn_product(grad.t(), x.t())


@cache
def _faster_kernel() -> LinearKernel:
    """The faster kernel in each of the products of a training step, by a measurement of a few milliseconds."""
    if not _has_onednn():
        return "mkl"
    with torch.inference_mode():
        gains = [gain for shape in _PROBES for gain in _gains(*shape)]
    gain = statistics.median(gains)
    chosen: LinearKernel = "onednn" if gain >= _GAIN else "mkl"
    log.debug("linear kernel: %s (oneDNN is %.2f times as fast as MKL)", chosen, gain)
    return chosen


def _gains(rows: int, inputs: int, outputs: int) -> list[float]:
    """How many times as fast oneDNN is: forward, gradient of x, and of the weight where it is given that."""
    x, weight, grad = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(rows, outputs)
    pairs: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
        (lambda: F.linear(x, weight), lambda: onednn_product(x, weight)),
        (lambda: torch.matmul(grad, weight), lambda: onednn_product(grad, weight.t())),
    ]
    if rows >= FEWEST_ROWS_WEIGHT_GRADIENT:
        pairs.append((lambda: torch.matmul(grad.t(), x), lambda: _weight_gradient(grad, x)))
    return [_gain(*pair) for pair in pairs]


def _gain(mkl: Callable[[], Any], onednn: Callable[[], Any]) -> float:
    """The ratio of the shortest times: other work on the machine only ever adds to a time."""
    shortest = [float("inf"), float("inf")]
    for _ in range(_ROUNDS):
        for side, run in enumerate((mkl, onednn)):
            started = time.perf_counter()
            run()
            shortest[side] = min(shortest[side], time.perf_counter() - started)
    return shortest[0] / shortest[1]
