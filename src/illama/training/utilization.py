"""How well a run uses its time and its device: waiting for data, needed operations beside what is reached, memory."""

from __future__ import annotations

import sys
import time

import torch

from illama.device import Precision
from illama.device.matmul_rate import MatmulRate, quick_matmul_rate
from illama.models.config import ModelConfig
from illama.models.cost import needed_multiply_adds, on_patches, training_multiply_adds


class Stopwatch:
    """Training time, without the pauses for evaluation and saving."""

    def __init__(self) -> None:
        self._images, self._waited, self._training = 0, 0.0, 0.0
        self._unsaved = 0.0
        self._since = time.perf_counter()

    def count(self, images: int, waited: float) -> None:
        """Note a step's images and the seconds it waited for data."""
        self._images += images
        self._waited += waited

    def pause(self) -> None:
        """Stop counting towards images/s."""
        now = time.perf_counter()
        self._training += now - self._since
        self._unsaved += now - self._since
        self._since = now

    def go_on(self) -> None:
        """Count again after a pause; the pause belongs to the run's time but not to images/s."""
        now = time.perf_counter()
        self._unsaved += now - self._since
        self._since = now

    def rates(self) -> tuple[float, float]:
        """(images per second, share of the time spent waiting for data) since the last call."""
        self.pause()
        seconds = max(self._training, 1e-9)
        rates = self._images / seconds, self._waited / seconds
        self._images, self._waited, self._training = 0, 0.0, 0.0
        return rates

    def taken(self) -> float:
        """Seconds since the last call, pauses included."""
        now = time.perf_counter()
        taken, self._unsaved = self._unsaved + now - self._since, 0.0
        self._since = now
        return taken


GB = 1e9


class StepMeter:
    """Utilization (MFU) and memory of training steps.

    Building it measures the device's matrix products once, for about 0.2 s. Generators and numbers of the run are left
    as they are.

    Args:
        config: The model.
        device: Where this process trains.
        precision: The run's; the ceiling is that of products in it.
        world_size: Devices that share the images, all alike.
    """

    def __init__(self, config: ModelConfig, device: torch.device, precision: Precision, world_size: int = 1) -> None:
        self._config, self._device, self._world_size = config, device, world_size
        self.ceiling: MatmulRate = quick_matmul_rate(device, precision)
        if device.type == "cuda":  # the factors of that product are no part of the run's peak
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)

    def summary(
        self, images_per_s: float, softness: float = 0.0, patches: int | None = None
    ) -> dict[str, float | None]:
        """Figures for a log record; both depend on clock and machine.

        `mfu`: what the images' forward and backward passes need at least (`illama.models.cost`), in operations
        per second, as a share of what the device's matrix products reach; 0 to 1. Work that is done again to save
        memory does not count. `memory_gb`: 1e9 bytes at the peak so far, on CUDA those of torch's allocator, on a CPU
        the resident memory of this process without its workers; None where neither can be known.

        Args:
            images_per_s: Training images per second, all devices together.
            softness: Softness in force; above 0 the mask saves nothing.
            patches: Patches of an image that are computed; all when None.
        """
        flops = training_flops(self._config if patches is None else on_patches(self._config, patches), softness)
        mfu = images_per_s * flops / (self.ceiling.flops_per_s * self._world_size)
        return {"mfu": mfu, "memory_gb": peak_memory_gb(self._device)}


def training_flops(config: ModelConfig, softness: float) -> float:
    """Floating-point operations that a training step needs for each image, two for each multiply-add."""
    return 2.0 * training_multiply_adds(config, needed_multiply_adds(config, softness))


def peak_memory_gb(device: torch.device) -> float | None:
    """Most memory so far in 1e9 bytes: torch's allocator on CUDA, this process on a CPU, None elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GB
    if device.type != "cpu" or sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # what the system counts ru_maxrss in
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GB
