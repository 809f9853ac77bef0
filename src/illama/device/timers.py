"""How a number of calls is timed on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import torch

GRAPH_WARMUP_CALLS = 3


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


class CannotCapture(RuntimeError):  # noqa: N818 - the call is timed in another way
    """Why a call cannot become part of a graph."""


class Graphs(Protocol):
    """Makes graphs of calls: what the device does for them, to be done again without the host's part."""

    def capture(self, run: Callable[[], object], calls: int) -> Callable[[], object]:
        """What does `calls` calls again, on the same inputs.

        Raises:
            CannotCapture: They do what no graph can hold.
        """


class CudaGraphs:
    """CUDA graphs of calls that neither wait for the device nor take other tensors every time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def capture(self, run: Callable[[], object], calls: int) -> Callable[[], object]:
        with torch.cuda.device(self._device):
            self._warm_up(run)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph):
                    for _ in range(calls):
                        run()
                graph.replay()
                torch.cuda.synchronize()
            except RuntimeError as error:
                raise CannotCapture(str(error).partition("\n")[0]) from error
        return graph.replay

    def _warm_up(self, run: Callable[[], object]) -> None:
        """Call on another stream, as capturing asks for. A call that waits for the device is found here: it would
        end the capture, and with it what torch's random generator and allocator have begun for it."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(side):
                for _ in range(GRAPH_WARMUP_CALLS):
                    run()
        except RuntimeError as error:
            if "synchronizing CUDA operation" not in str(error):
                raise
            raise CannotCapture("it waits for the device") from error
        finally:
            torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()


def graphs_for(device: torch.device) -> Graphs | None:
    """What makes graphs of calls on a device; None where a device has no such thing."""
    return CudaGraphs(device) if device.type == "cuda" else None


def timer_for(device: torch.device) -> Timer:
    """The right clock for a device."""
    if device.type == "cuda":
        return CudaTimer(device)
    return MpsTimer() if device.type == "mps" else WallTimer()
