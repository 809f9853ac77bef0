"""What this machine reaches at best: matrix products per second, and bytes per second; measured, not looked up."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from illama.bench.other_load import OtherLoad
from illama.device import Precision
from illama.device.matmul_rate import Sampling, matmul_rate, seconds_per_call
from illama.device.timers import Timer, timer_for

# (rows, inner, columns): squares, and the linear layers of a network at batch 16; large ones for a GPU.
_CPU_SHAPES = ((1024, 1024, 1024), (2048, 2048, 2048), (3152, 192, 768), (3152, 768, 3072))
_GPU_SHAPES = ((4096, 4096, 4096), (8192, 8192, 8192), (50432, 768, 3072), (50432, 1024, 4096))
_CPU_BUFFERS_MIB = (2, 8, 32, 256)
_GPU_BUFFERS_MIB = (16, 64, 256, 1024)
SAMPLING = Sampling(sample_s=0.12, samples=5)


@dataclass(frozen=True)
class Ceilings:
    """The best that was measured on one device.

    Attributes:
        flops_per_s: Precision -> the fastest matrix product's floating-point operations per second.
        how: Precision -> which product that was.
        bytes_per_s: Size of a buffer in bytes -> bytes read and written per second.
        others: CPU cores that other processes kept busy meanwhile; None where it cannot be known.
    """

    flops_per_s: dict[str, float]
    how: dict[str, str]
    bytes_per_s: dict[int, float] = field(default_factory=dict)
    others: float | None = None

    def bandwidth(self, working_set: float) -> float:
        """Bytes per second for data of that size: the best of all buffers at least as large (small ones are cached)."""
        sizes = [size for size in self.bytes_per_s if size >= working_set] or [max(self.bytes_per_s)]
        return max(self.bytes_per_s[size] for size in sizes)

    def arithmetic_floor_s(self, flops: float, precision: str) -> float:
        """Seconds that the products alone take at the ceiling."""
        return flops / self.flops_per_s[precision]

    def bandwidth_floor_s(self, moved: float, working_set: float) -> float:
        """Seconds that moving the bytes takes at the ceiling for data of that size."""
        return moved / self.bandwidth(working_set)

    def to_dict(self) -> dict[str, Any]:
        return {
            "matmul_flops_per_s": self.flops_per_s,
            "matmul": self.how,
            "bytes_per_s_by_buffer_bytes": {str(size): speed for size, speed in self.bytes_per_s.items()},
            "busy_cores_of_others": self.others,
        }


def measure_ceilings(device: torch.device, precisions: tuple[Precision, ...]) -> Ceilings:
    """Measure the device: a few seconds.

    Args:
        device: The device.
        precisions: Types of the factors of matrix products.
    """
    timer, load = timer_for(device), OtherLoad.here()
    before = None if load is None else load.look()
    shapes = _GPU_SHAPES if device.type == "cuda" else _CPU_SHAPES
    rates = {precision: matmul_rate(device, precision, shapes, SAMPLING, timer) for precision in precisions}
    bandwidths = _bandwidths(device, timer)
    others = None if load is None or before is None else load.since(before)
    return Ceilings(
        {precision: rate.flops_per_s for precision, rate in rates.items()},
        {precision: rate.how for precision, rate in rates.items()},
        bandwidths,
        others,
    )


def _bandwidths(device: torch.device, timer: Timer) -> dict[int, float]:
    """Bytes per second of reading, and of copying, for buffers from cache size to memory size: the better one."""
    found = {}
    for mib in _GPU_BUFFERS_MIB if device.type == "cuda" else _CPU_BUFFERS_MIB:
        size = mib << 20
        source = torch.ones(size // 8, device=device)  # half the size, float32; the copy is the other half
        target = torch.empty_like(source)
        whole = torch.ones(size // 4, device=device)
        copying = size / seconds_per_call(partial(target.copy_, source), timer, SAMPLING)
        reading = size / seconds_per_call(whole.sum, timer, SAMPLING)
        found[size] = max(copying, reading)
    return found
