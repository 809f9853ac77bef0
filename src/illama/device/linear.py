"""The one linear function: y = x W^T + b, by whichever matrix product this machine does faster.

PyTorch gives float32 products on the CPU to MKL. On AMD processors MKL keeps to AVX2, while oneDNN, which PyTorch
brings as well, uses AVX-512: up to twice as fast (docs/kernels.md). Which is faster depends on the processor and on the
product, so there are some kinds of products, and a short measurement at the first one of a kind chooses for the
process. Everything else (other devices and dtypes, autocast, compilers, exporters, small products) is `F.linear` as
ever.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

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
# oneDNN must be this much faster: noise must not decide, for a run that is continued must compute as it began.
_GAIN = 1.15
_MEASUREMENTS = 3  # of which each must say so: beside other work one in nine says what an idle machine does not
Operation = Literal["forward", "input gradient", "weight gradient"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
# Products of one kind have one answer: the operation, whether the rows are many, whether the weight is wide.
Kind = tuple[Operation, bool, bool]
_MANY_ROWS, _WIDE = 1_000, 300_000
_SHAPES = {  # rows, inputs and outputs of the product that is timed for a kind, and how often
    (False, False): (197, 192, 576, 9),
    (False, True): (197, 768, 2304, 5),
    (True, False): (1576, 192, 576, 7),
    (True, True): (1024, 768, 1536, 3),
}
_PROBES: dict[Kind, tuple[int, int, int, int]] = {
    (operation, *shape): probe for operation in OPERATIONS for shape, probe in _SHAPES.items()
}
KINDS: dict[Kind, str] = {  # in words, as a checkpoint has them
    kind: f"{kind[0]}, {'many' if kind[1] else 'few'} rows, {'wide' if kind[2] else 'narrow'}" for kind in _PROBES
}

_chosen: dict[Kind, LinearKernel] = {}
_PLAIN = (torch.Tensor, nn.Parameter)
log = logging.getLogger(__name__)


class Linear(nn.Linear):
    """nn.Linear on the one linear function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x (..., K) times weight (N, K) transposed, plus bias (N): (..., N), as `F.linear`, differentiable twice."""
    if not _may_choose(x, weight):
        return F.linear(x, weight, bias)
    rows, numbers = x.numel() // x.shape[-1], weight.numel()
    learns = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if learns and any(linear_kernel(operation, rows, numbers) == "onednn" for operation in OPERATIONS):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias) if learns else _product(x, weight, bias)


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


def linear_kernel(operation: Operation, rows: int, numbers: int) -> LinearKernel:
    """Which library makes a float32 product on the CPU: named by `ILLAMA_LINEAR`, or the faster one for its kind.

    Args:
        operation: What is computed.
        rows: Rows of the input.
        numbers: Numbers in the weight.
    """
    kind = (operation, rows >= _MANY_ROWS, numbers >= _WIDE)
    return _chosen[kind] if kind in _chosen else _choose(kind)


def linear_kernels(model: nn.Module | None = None) -> dict[str, LinearKernel]:
    """Which library makes which kind of product: those that came up so far, or all that a model could need."""
    if model is not None:
        any_wide = any(weight.numel() >= _WIDE for weight in model.parameters())
        for kind in _PROBES:
            if (any_wide or not kind[2]) and kind not in _chosen:
                _choose(kind)
    return {KINDS[kind]: name for kind, name in _chosen.items()}


def keep_linear_kernels(kernels: LinearKernel | Mapping[str, LinearKernel]) -> None:
    """Stay with the libraries that a run began with, which round differently; one name stands for all kinds."""
    _chosen.clear()
    for kind, words in KINDS.items():
        name = kernels if isinstance(kernels, str) else kernels.get(words)
        if name is not None:
            _chosen[kind] = _named() or (name if _has_onednn() else "mkl")


def _named() -> LinearKernel | None:
    named = os.environ.get(ENVIRONMENT, "auto")
    if named not in ("onednn", "mkl", "auto"):
        raise UserError(f"{ENVIRONMENT} must be onednn, mkl or auto; got {named!r}")
    return None if named == "auto" else named  # type: ignore[return-value]


def _choose(kind: Kind) -> LinearKernel:
    named = _named()
    if named is None:
        gain = _gain(*_probe(kind)) if _has_onednn() else 0.0
        for _ in range(_MEASUREMENTS - 1):
            if gain >= _GAIN:
                gain = min(gain, _gain(*_probe(kind)))
        named = "onednn" if gain >= _GAIN else "mkl"
        log.debug("%s products: %s (oneDNN is %.2f times as fast as MKL)", KINDS[kind], named, gain)
    _chosen[kind] = named
    return named


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _may_choose(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether both libraries could compute this, and it is large enough to matter."""
    return (
        not torch.compiler.is_compiling()
        and not torch._C._is_tracing()  # which would make tensors of the numbers below
        and x.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() * weight.shape[0] >= SMALLEST
        and x.numel() >= FEWEST_ROWS * x.shape[-1]
        and type(weight) in _PLAIN  # a quantized or sharded weight brings its own product
        and type(x) in _PLAIN
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_mkldnn_enabled()
    )


def onednn_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x w^T + b of float32 matrices by oneDNN, not differentiable; transposed views are read as they lie."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    named = linear_kernel("forward", x.numel() // x.shape[-1], weight.numel())
    return F.linear(x, weight, bias) if named == "mkl" else onednn_product(x, weight, bias)


class _Linear(torch.autograd.Function):
    """Each product by the library that is faster for it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        flat_grad, flat_x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        again = torch.is_grad_enabled()  # somebody differentiates a second time
        size = len(flat_x), weight.numel()
        to_x = to_weight = None
        if needs_x:
            mkl = again or linear_kernel("input gradient", *size) == "mkl"
            to_x = torch.matmul(flat_grad, weight) if mkl else onednn_product(flat_grad, weight.t())
        if needs_weight:
            mkl = again or linear_kernel("weight gradient", *size) == "mkl"
            to_weight = torch.matmul(flat_grad.t(), flat_x) if mkl else _weight_gradient(flat_grad, flat_x)
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


def _probe(kind: Kind) -> tuple[Callable[[], Any], Callable[[], Any], int]:
    """A product of that kind by MKL and by oneDNN, and how often each is to be timed."""
    operation, (rows, inputs, outputs, rounds) = kind[0], _PROBES[kind]
    x, weight, grad = torch.ones(rows, inputs), torch.ones(outputs, inputs), torch.ones(rows, outputs)
    if operation == "forward":
        return lambda: F.linear(x, weight), lambda: onednn_product(x, weight), rounds
    if operation == "input gradient":
        return lambda: torch.matmul(grad, weight), lambda: onednn_product(grad, weight.t()), rounds
    return lambda: torch.matmul(grad.t(), x), lambda: _weight_gradient(grad, x), rounds


@torch.inference_mode()
def _gain(mkl: Callable[[], Any], onednn: Callable[[], Any], rounds: int) -> float:
    """How many times as fast oneDNN is, by the shortest times: other work on the machine only ever adds to a time."""
    shortest = [float("inf"), float("inf")]
    for _ in range(rounds):
        for side, run in enumerate((mkl, onednn)):
            started = time.perf_counter()
            run()
            shortest[side] = min(shortest[side], time.perf_counter() - started)
    return shortest[0] / shortest[1]
