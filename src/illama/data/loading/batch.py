"""What loaders hand out, which images come when, and how both get to the device.

What the host has made travels by one copy that nobody waits for; what does not change, once.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree

from illama.data.rng import DrawShare, Purpose, torch_generator

if TYPE_CHECKING:
    from illama.recipes import BatchPlan

T = TypeVar("T")
_ALIGNMENT = 16  # bytes; any dtype may be viewed there


@dataclass(frozen=True)
class Batch:
    """Images ready for the model.

    Attributes:
        images: (B, C, H, W) float32, normalised, on the device.
        targets: As the task has them, (B, ...), on the device: classes (B,) int64, soft targets (B, K) float32 of mixed
            images, or others.
        indices: Position of each image in its source, (B,) int64 on the CPU.
        micro: Which micro-batch of the training this is; None in evaluation.
        kept: Patches that the step computes, int64, rising, on the device, the same for all images of the draw batch;
            None where it computes all.
    """

    images: torch.Tensor
    targets: torch.Tensor
    indices: torch.Tensor
    micro: MicroBatch | None = None
    kept: torch.Tensor | None = None


@dataclass(frozen=True)
class MicroBatch:
    """Which images one micro-batch takes. Its random numbers are those of its draw batch (`DrawShare`).

    Attributes:
        step: Optimizer step, from 0.
        part: Number of the draw batch within the step.
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

    The order is the same for any number of processes; each of them takes its micro-batches of every step.

    Attributes:
        num_images: Images of the data set.
        plan: How a step is split over devices and micro-batches.
        seed: Decides the order.
        rank: Which of the plan's devices this is.
    """

    num_images: int
    plan: BatchPlan
    seed: int
    rank: int = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch, floor(images / total batch)."""
        return self.num_images // self.plan.total_batch

    @property
    def share(self) -> DrawShare:
        """This device's part of each draw batch.

        Of a shared one its images are taken from both ends, so that image i and its partner in mixing, the i-th from
        the end, come to the same device and are partners there as well.
        """
        plan = self.plan
        if plan.draw_batch == plan.device_batch:
            return DrawShare(plan.draw_batch)
        front = torch.arange(plan.device_batch // 2) + self.rank * (plan.device_batch // 2)
        return DrawShare(plan.draw_batch, torch.cat([front, plan.draw_batch - 1 - front.flip(0)]))

    def permutation(self, epoch: int) -> np.ndarray:
        """All positions in the order of an epoch, (num_images,) int64."""
        return torch.randperm(self.num_images, generator=torch_generator(Purpose.ORDER, self.seed, epoch)).numpy()

    def from_step(self, start_step: int) -> Iterator[MicroBatch]:
        """This device's micro-batches from an optimizer step on, without end."""
        plan, rows = self.plan, self.share.rows
        places = np.arange(plan.device_batch) if rows is None else rows.numpy()
        epoch, within = divmod(start_step, self.steps_per_epoch)
        while True:
            order = self.permutation(epoch)
            for number in range(within, self.steps_per_epoch):
                step = epoch * self.steps_per_epoch + number
                for micro in range(plan.accumulation):
                    part = micro if rows is not None else micro * plan.num_devices + self.rank
                    at = number * plan.total_batch + part * plan.draw_batch
                    yield MicroBatch(step, part, epoch, order[at + places])
            epoch, within = epoch + 1, 0


def to_device(plain: T, device: torch.device) -> T:
    """Nested containers with every tensor of the CPU on `device`; what is there already, and no tensor, stays.

    All of them travel in one copy from memory that a GPU reads by itself, so that the host may go on.
    """
    leaves, structure = _pytree.tree_flatten(plain)
    here = [leaf for leaf in leaves if _is_on_cpu(leaf)]
    if device.type == "cpu" or not here:
        return plain
    sent = iter(unpack(pack(here, pin=device.type == "cuda").to(device, non_blocking=True), here))
    return _pytree.tree_unflatten([next(sent) if _is_on_cpu(leaf) else leaf for leaf in leaves], structure)


def pack(tensors: Sequence[Tensor], *, pin: bool = False) -> Tensor:
    """Contents of tensors of the CPU one behind the other, (bytes,) uint8; pinned if asked."""
    packed = torch.empty(packed_bytes(tensors), dtype=torch.uint8, pin_memory=pin)
    for place, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return packed


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors like these take one behind the other."""
    return sum(map(_room, tensors))


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `pack` made of tensors like these."""
    views, at = [], 0
    for tensor in like:
        views.append(packed[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        at += _room(tensor)
    return views


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _is_on_cpu(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "cpu"


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor (len(values),) that nobody changes; the host waits for its copy once."""
    return torch.tensor(values, dtype=dtype, device=device)
