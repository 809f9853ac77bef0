"""Work in a process of its own, for settings that a process takes once: malloc's, and the environment's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import ClassVar

from illama.bench.interleave import Case

BATCH = 16
NETWORKS = ("timm vit_tiny_patch16_224", "illama tiny")


class Worker:
    """A process that makes one call each time it is asked; waits in between.

    Args:
        work: A name of `WORKS` with its arguments.
        environment: Variables on top of this process's.
    """

    running: ClassVar[list[Worker]] = []

    def __init__(self, *work: str, environment: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *work],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.running.append(self)

    def call(self) -> None:
        """One call, done when this returns."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        if not self._process.stdout.readline():
            raise RuntimeError("the worker process ended")

    @classmethod
    def stop_all(cls) -> None:
        """End all workers."""
        for worker in cls.running:
            worker._process.communicate()
        cls.running.clear()


def allocator_cases(network: str) -> list[Case]:
    """Predictions of a batch, with malloc's own settings and with the command line's."""
    names = {"default": "memory given back", "kept": "memory kept"}
    return [Case(name, Worker("predict", network, setting).call, items=BATCH) for setting, name in names.items()]


def environment_cases(rows: int, inputs: int, outputs: int) -> list[Case]:
    """A linear layer's product by MKL under each environment."""
    settings: dict[str, dict[str, str]] = {
        "nothing set": {},
        "MKL_CBWR=AVX512": {"MKL_CBWR": "AVX512"},
        "MKL_ENABLE_INSTRUCTIONS=AVX512": {"MKL_ENABLE_INSTRUCTIONS": "AVX512"},
        "MKL_DEBUG_CPU_TYPE=5": {"MKL_DEBUG_CPU_TYPE": "5"},
    }
    shape = [str(number) for number in (rows, inputs, outputs)]
    flops = 2.0 * PRODUCTS * rows * inputs * outputs
    return [Case(name, Worker("product", *shape, environment=env).call, flops=flops) for name, env in settings.items()]


PRODUCTS = 20  # for each call: one alone takes hardly longer than asking for it


def _predict(network: str, setting: str) -> Callable[[], object]:
    import torch

    from illama.models import ILlama
    from illama.models.variants import VARIANTS
    from illama.system.processes import keep_freed_memory

    if setting == "kept":
        keep_freed_memory()
    if network.startswith("timm "):
        from illama.optional import import_timm

        model = import_timm().create_model(network.removeprefix("timm "))
    else:
        model = ILlama(VARIANTS[network.removeprefix("illama ")])
    model.eval()
    images = torch.randn(BATCH, 3, 224, 224)

    def call() -> object:
        with torch.inference_mode():
            return model(images)

    return call


def _product(*shape: str) -> Callable[[], object]:
    import torch
    import torch.nn.functional as F

    rows, inputs, outputs = map(int, shape)
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)

    def call() -> object:
        with torch.inference_mode():
            return [F.linear(x, weight) for _ in range(PRODUCTS)]

    return call


WORKS: dict[str, Callable[..., Callable[[], object]]] = {"predict": _predict, "product": _product}

if __name__ == "__main__":
    run = WORKS[sys.argv[1]](*sys.argv[2:])
    for _ in sys.stdin:
        run()
        print("done", flush=True)
