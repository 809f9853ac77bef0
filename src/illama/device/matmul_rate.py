"""How many operations per second this device reaches in matrix products: measured, not looked up.

The ceiling of every network on it, for `illama bench` and for the utilization (MFU) that training reports.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from illama.device import Precision
from illama.device.timers import Timer, timer_for

DTYPES: dict[Precision, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
Shape = tuple[int, int, int]  # rows, inner, columns


@dataclass(frozen=True)
class Sampling:
    """How long a product is timed.

    Attributes:
        sample_s: Length of a sample; the fastest of all is kept, for a ceiling is what can be reached.
        samples: How many.
        limit_s: No further sample once a product has taken so long.
    """

    sample_s: float
    samples: int
    limit_s: float = float("inf")


QUICK = Sampling(sample_s=0.02, samples=3, limit_s=0.08)  # on two cores 0.2 s for both ways to multiply
_MANY_THREADS = 8


@dataclass(frozen=True)
class MatmulRate:
    """The fastest product that was found.

    Attributes:
        flops_per_s: Floating-point operations per second, two for each multiply-add.
        how: Which product: "oneDNN linear 1024 x 1024 x 1024".
    """

    flops_per_s: float
    how: str


def quick_matmul_rate(device: torch.device, precision: Precision) -> MatmulRate:
    """The rate of one large product, with the threads in force; torch's generators are left as they are.

    A process measures it once.
    """
    return _quick_rate(device, precision, torch.get_num_threads())


@functools.cache
def _quick_rate(device: torch.device, precision: Precision, threads: int) -> MatmulRate:
    # As small as reaches the ceiling: a larger one only takes longer.
    side = 8192 if device.type != "cpu" else 2048 if threads > _MANY_THREADS else 1024
    return matmul_rate(device, precision, ((side, side, side),), QUICK)


def matmul_rate(
    device: torch.device,
    precision: Precision,
    shapes: Sequence[Shape],
    sampling: Sampling,
    timer: Timer | None = None,
) -> MatmulRate:
    """The fastest product of all shapes, by every way to multiply that this build of torch has.

    Args:
        device: Where.
        precision: Type of both factors.
        shapes: Rows, inner and columns of each product; at least one.
        sampling: How long each is timed.
        timer: The clock; the device's own when None.
    """
    timer = timer or timer_for(device)
    best = MatmulRate(0.0, "")
    for rows, inner, columns in shapes:
        a = _random(rows, inner, device, DTYPES[precision])
        weight = _random(columns, inner, device, DTYPES[precision])
        with torch.inference_mode():
            for name, product in products(a, weight):
                speed = 2 * rows * inner * columns / seconds_per_call(product, timer, sampling)
                if speed > best.flops_per_s:
                    best = MatmulRate(speed, f"{name} {rows} x {inner} x {columns}")
    return best


def products(a: torch.Tensor, weight: torch.Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every way to multiply that this build of torch has, weights in the layout of a linear layer."""
    yield "torch.mm", lambda: torch.mm(a, weight.t())
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if a.device.type == "cpu" and linear is not None and torch.backends.mkldnn.is_available():
        # oneDNN's own product: torch.mm may go to another library, which need not be the faster one.
        yield "oneDNN linear", lambda: linear(a, weight, None, "none", [], "")


def seconds_per_call(run: Callable[[], object], timer: Timer, sampling: Sampling) -> float:
    """Seconds per call of the least disturbed sample."""
    started = time.perf_counter()
    run()
    best = timer.seconds(run, 1)
    calls = max(1, round(sampling.sample_s / max(best, 1e-7)))
    for _ in range(sampling.samples):
        if time.perf_counter() - started > sampling.limit_s:
            break
        best = min(best, timer.seconds(run, calls) / calls)
    return best


def _random(rows: int, columns: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Noise from a generator of its own: zeros multiply faster than what a network holds (they switch less)."""
    generator = torch.Generator(device).manual_seed(0)
    return torch.randn(rows, columns, device=device, dtype=dtype, generator=generator)
