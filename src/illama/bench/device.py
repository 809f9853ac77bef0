"""What differs between devices when something is measured on them: the clock, and how memory is counted."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch

from illama.bench.interleave import Timer, WallTimer


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


def peak_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Memory that one call takes at its peak beyond what is held before it; None where it cannot be measured.

    On a GPU from torch's allocator. On Linux from the kernel: growth of the resident memory to its high-water mark,
    which is reset before the call, after unused memory was given back. Libraries keep buffers of their own, so small
    differences mean nothing.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    return _resident_growth(run) if device.type == "cpu" else None


def _resident_growth(run: Callable[[], object]) -> int | None:
    try:
        ctypes.CDLL(ctypes.util.find_library("c")).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
        before = _status_bytes("VmRSS")
        run()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError, TypeError):
        return None


def _status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(found[1]) << 10
