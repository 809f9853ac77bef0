"""How a number of calls is timed on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch


class Timer(Protocol):
    """A device's clock."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        """Seconds that `calls` calls take, all together, until their results are there."""


class WallTimer:
    """The host's clock, for devices on which a call returns when it is done."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            run()
        return time.perf_counter() - start


class CudaTimer:
    """CUDA events around the calls: the device's own clock, idle time between kernels included."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        with torch.cuda.device(self._device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            for _ in range(calls):
                run()
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3


class MpsTimer(WallTimer):
    """The host's clock; waits for the device before and after."""

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        torch.mps.synchronize()

        def waited() -> None:
            for _ in range(calls):
                run()
            torch.mps.synchronize()

        return super().seconds(waited, 1)


def timer_for(device: torch.device) -> Timer:
    """The right clock for a device."""
    if device.type == "cuda":
        return CudaTimer(device)
    return MpsTimer() if device.type == "mps" else WallTimer()
