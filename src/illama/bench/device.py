"""The memory that a call takes on a device."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import re
from collections.abc import Callable
from pathlib import Path

import torch


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
