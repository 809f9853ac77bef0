"""What loaders hand out, and which images come when."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from illama.data.rng import Purpose, torch_generator


@dataclass(frozen=True)
class Batch:
    """Images ready for the model.

    Attributes:
        images: (B, C, H, W) float32, normalised, on the device.
        targets: Classes (B,) int64, or soft targets (B, K) float32, on the device.
        indices: Position of each image in its source, (B,) int64 on the CPU.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Which images one micro-batch takes.

    Attributes:
        step: Optimizer step, from 0.
        part: Number of the micro-batch within the step.
        epoch: From 0.
        chosen: Positions of the images, (B,) int64.
    """

    step: int
    part: int
    epoch: int
    chosen: np.ndarray


@dataclass(frozen=True)
class TrainingOrder:
    """The order of the images: one seeded permutation per epoch, what is left over of an epoch is dropped.

    Attributes:
        num_images: Images of the data set.
        device_batch: Images per micro-batch.
        accumulation: Micro-batches per optimizer step.
        seed: Decides the order.
    """

    num_images: int
    device_batch: int
    accumulation: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, floor(images / total batch)."""
        return self.num_images // (self.device_batch * self.accumulation)

    def permutation(self, epoch: int) -> np.ndarray:
        """All positions in the order of an epoch, (num_images,) int64."""
        return torch.randperm(self.num_images, generator=torch_generator(Purpose.ORDER, self.seed, epoch)).numpy()

    def from_step(self, start_step: int) -> Iterator[MicroBatch]:
        """Micro-batches from an optimizer step on, without end."""
        epoch, within = divmod(start_step, self.steps_per_epoch)
        while True:
            order = self.permutation(epoch)
            for number in range(within, self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + number
                for part in range(self.accumulation):
                    at = (number * self.accumulation + part) * self.device_batch
                    yield MicroBatch(step, part, epoch, order[at : at + self.device_batch])
            epoch, within = epoch + 1, 0
