"""What a machine reaches at best, what else it does meanwhile, and the memory that a call takes."""

from __future__ import annotations

import ctypes
import ctypes.util
import gc
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from illama.device import Precision
from illama.device.matmul_rate import Sampling, matmul_rate, seconds_per_call
from illama.device.timers import Timer, timer_for

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
    tried = _TRIED.search(str(error))
    if tried is None:
        return "out of memory"
    amount, unit = tried.groups()
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
    size = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if size is None:
        raise OSError(f"no {field} in /proc/self/status")
    return int(size[1]) << 10


OTHERS_LIMIT = 0.12  # cores; one busy neighbour makes two-thread timings 1.2 to 2.2 times longer
_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class LoadSample:
    """CPU seconds since boot at one moment: of the whole machine and of this process; and the wall clock."""

    machine_s: float
    own_s: float
    at_s: float


class OtherLoad:
    """Busy time of the machine (stolen by other virtual machines included) less that of this process and its children.

    Args:
        stat: Linux' /proc/stat.
    """

    def __init__(self, stat: Path = _STAT) -> None:
        self._stat = stat
        self._tick_s = 1.0 / os.sysconf("SC_CLK_TCK")

    @classmethod
    def here(cls) -> OtherLoad | None:
        """For this machine; None where the system does not tell."""
        return cls() if _STAT.is_file() else None

    def look(self) -> LoadSample:
        """Take note of now."""
        fields = [int(field) for field in self._stat.read_text().split("\n", 1)[0].split()[1:]]
        user, nice, system, _idle, _iowait, irq, softirq, steal = fields[:8]
        children = os.times()
        own = time.process_time() + children.children_user + children.children_system
        return LoadSample((user + nice + system + irq + softirq + steal) * self._tick_s, own, time.perf_counter())

    def since(self, before: LoadSample) -> float:
        """Cores that others kept busy since an earlier look: 0 none, 1 one whole core."""
        now = self.look()
        others = (now.machine_s - before.machine_s) - (now.own_s - before.own_s)
        return max(0.0, others / max(now.at_s - before.at_s, 1e-9))


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
        matmul_flops_per_s: Precision -> the fastest matrix product's floating-point operations per second.
        matmul: Precision -> which product that was.
        bytes_per_s_by_buffer_bytes: Size of a buffer -> bytes read and written per second.
        busy_cores_of_others: CPU cores that other processes kept busy meanwhile; None where it cannot be known.
    """

    matmul_flops_per_s: dict[str, float]
    matmul: dict[str, str]
    bytes_per_s_by_buffer_bytes: dict[int, float]
    busy_cores_of_others: float | None = None

    def bandwidth(self, working_set: float) -> float:
        """Bytes per second for data of that size: the best of all buffers at least as large (small ones are cached)."""
        speeds = self.bytes_per_s_by_buffer_bytes
        return max(speeds[size] for size in [size for size in speeds if size >= working_set] or [max(speeds)])


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
    speeds = {}
    for mib in _GPU_BUFFERS_MIB if device.type == "cuda" else _CPU_BUFFERS_MIB:
        size = mib << 20
        source = torch.ones(size // 8, device=device)  # half the size, float32; the copy is the other half
        target = torch.empty_like(source)
        whole = torch.ones(size // 4, device=device)
        copying = size / seconds_per_call(partial(target.copy_, source), timer, SAMPLING)
        reading = size / seconds_per_call(whole.sum, timer, SAMPLING)
        speeds[size] = max(copying, reading)
    return speeds
