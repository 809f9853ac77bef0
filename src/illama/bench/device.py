"""The memory that a call takes on a device, and what becomes of one for which there is none."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

# torch's words for a GPU and for the CPU; numpy's.
_TRIED = re.compile(r"(?:tried|unable) to allocate (\d+(?:\.\d+)?) (\w+)", re.IGNORECASE)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


@contextmanager
def unless_out_of_memory(tell: Callable[[str], None]) -> Iterator[None]:
    """Inside, memory that runs out ends the block and no more: what the block held is freed.

    Args:
        tell: Told what became of it: "out of memory (tried to allocate 2.00 GiB)". It lets go of what is not needed
            any more.
    """
    try:
        yield
        return
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        traceback.clear_frames(error.__traceback__)  # their tensors would live as long as the error
        tell(_no_room(error))
    free_memory()


def free_memory() -> None:
    """Give back what nothing holds any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _no_room(error: BaseException) -> str:
    found = _TRIED.search(str(error))
    if found is None:
        return "out of memory"
    amount, unit = found.groups()
    size = f"{int(amount) / 2**30:,.2f} GiB" if unit == "bytes" else f"{amount} {unit}"
    return f"out of memory (tried to allocate {size})"


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
