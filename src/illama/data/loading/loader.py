"""The loaders of training and evaluation: where images are kept, and how batches leave for the model."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from illama.data.augment.batched import RandomErasing
from illama.data.eval_transform import EvalTransform, normalize
from illama.data.loading.batch import Batch, MicroBatch, TrainingOrder, to_device
from illama.data.loading.samples import (
    MEMORY_MAX_BYTES,
    MEMORY_MAX_SIDE,
    DecodedImages,
    EvalSamples,
    RawBatch,
    TrainSamples,
    UnequalSizes,
    decode,
    first_readable,
)
from illama.data.loading.workers import decoded_batches, one_thread
from illama.data.rng import Draws, Purpose, numpy_generator, torch_generator
from illama.data.source import Source, SubsetSource
from illama.data.targets import CLASS_LABELS, BatchTransform, Targets
from illama.distributed import ALONE, World, local_size
from illama.errors import UserError
from illama.models.config import SMALL_PX
from illama.system.processes import cpu_count

if TYPE_CHECKING:
    from illama.recipes import BatchPlan, Recipe

# Evaluation sets up to this size after the transform are decoded once and kept.
EVAL_MAX_BYTES = 256 << 20
# Images that a GPU augments at once; as float32, with their noise and coordinates, they take about 20 times as much.
AT_ONCE_BYTES = 32 << 20


class InputSchedules(Protocol):
    """What of a step's input changes over time. Batches are made ahead, so steps after the last are asked for too."""

    def mix_prob(self, step: int) -> float:
        """Probability that a batch of a step is mixed."""

    def kept_patches(self, step: int) -> int:
        """Patches of an image that a step computes."""


@dataclass(frozen=True)
class _Unchanging:
    """The same for all steps."""

    prob: float
    patches: int

    def mix_prob(self, step: int) -> float:
        return self.prob

    def kept_patches(self, step: int) -> int:
        return self.patches


class TrainLoader:
    """Training batches without end; every random number is a function of the seed and the step (or image).

    Args:
        recipe: Its sections data, augment and seed decide.
        source: The training split.
        device: Where batches are needed.
        plan: Images per micro-batch and micro-batches per step.
        rank: Which of the plan's devices this is.
        targets: The task's.

    Attributes:
        steps_per_epoch: floor(images / total batch).
        share: This device's part of the batches that random numbers are drawn for.
        skipped: Location of each unreadable image met so far, and why.
        description: Where the images are kept, for people.

    Raises:
        UserError: Fewer images than one step takes, none readable, or a storage that cannot serve the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        device: torch.device | str,
        plan: BatchPlan,
        rank: int = 0,
        targets: Targets = CLASS_LABELS,
    ) -> None:
        num_classes = recipe.model.num_classes
        if num_classes < len(source.classes):
            raise UserError(
                f"model.num_classes is {num_classes}, but {source.description}; "
                f"give model.num_classes={len(source.classes)}"
            )
        self._recipe, self._device = recipe, torch.device(device)
        self._workers = resolve_workers(recipe.data.workers)
        source.prepare()
        crop, data = resolve_crop(recipe), recipe.data
        self._memory, self.description = _keep_in_memory(recipe, source, crop, targets)
        self._augment: BatchTransform | None = None
        if self._memory is None:
            self._augment = _augment_on_device(recipe, self._device, targets)
            on_device = self._augment is not None
            self._samples = TrainSamples(recipe, source, crop, targets, on_device=on_device)
            self.skipped: dict[str, str] = {}
            self.description += f"; decoded by {self._workers} processes"
            self.description += ", augmented on the device" if on_device else " that augment them too"
        else:
            self._augment = targets.batched(recipe, crop)
            self.skipped = dict(self._memory.broken)
            if self._memory.images.numel() <= MEMORY_MAX_BYTES:
                self._memory.images = self._memory.images.to(self._device)
        count = len(source) if self._memory is None else len(self._memory.images)
        self._order = TrainingOrder(count, plan, recipe.seed, rank)
        self.steps_per_epoch, self.share = self._order.steps_per_epoch, self._order.share
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{source.description}: {count} readable images are fewer than the {plan.total_batch} of one step; "
                f"give train.total_batch={count} or less"
            )
        self._normalize = partial(normalize, mean=data.mean, std=data.std)
        self._erasing = RandomErasing.of(recipe.augment)
        self._mixing = targets.mixing(recipe)

    def batches(self, start_step: int = 0, schedules: InputSchedules | None = None) -> Generator[Batch, None, None]:
        """This device's micro-batches from optimizer step `start_step` on, `accumulation` per step, without end.

        Without schedules all of them are mixed as `augment.mix_prob` says, and have all their patches.
        """
        schedules = schedules or _Unchanging(self._recipe.augment.mix_prob, self._recipe.model.num_patches)
        in_memory = self._memory is not None
        for micros, raw in (self._from_memory if in_memory else self._from_workers)(start_step):
            with nullcontext() if in_memory or not self._workers else one_thread(self._device):
                batches = self._finish(micros, raw, schedules)
            yield from batches

    def _from_memory(self, start_step: int) -> Iterator[tuple[list[MicroBatch], RawBatch]]:
        """Micro-batches with their samples one behind the other, on the device."""
        memory = self._memory
        assert memory is not None
        order, device = self._order.from_step(start_step), self._device
        at_once = _at_once(device, self._order.plan.device_batch * memory.images[0].numel())
        while True:
            micros = list(itertools.islice(order, at_once))
            chosen = torch.from_numpy(np.concatenate([micro.chosen for micro in micros]))
            targets, indices = memory.targets[chosen], memory.indices[chosen]
            if memory.images.device.type == device.type:
                there, targets = to_device((chosen, targets), device)
                yield micros, RawBatch(memory.images[there], targets, indices, {})
            else:
                yield micros, RawBatch(*to_device((memory.images[chosen], targets), device), indices, {})

    def _from_workers(self, start_step: int) -> Iterator[tuple[list[MicroBatch], RawBatch]]:
        order, in_the_making = itertools.tee(self._order.from_step(start_step))
        keys = ((micro.epoch, micro.chosen) for micro in in_the_making)
        timeout_s, pin = self._recipe.data.worker_timeout_s, self._device.type == "cuda"
        batches = decoded_batches(self._samples, keys, self._workers, timeout_s, pin_memory=pin)
        for micro, raw in zip(order, batches, strict=True):
            self.skipped.update(raw.broken)
            yield [micro], _to(raw, self._device)

    def _finish(self, micros: Sequence[MicroBatch], raw: RawBatch, schedules: InputSchedules) -> list[Batch]:
        """Augment (what no worker did), normalise, erase, mix, on the device; all but the mixing for all batches."""
        images, targets, size = raw.images, raw.targets, raw.images.shape[2:]
        augmenting = None if self._augment is None else self._augment.draw(self._draws(Purpose.AUGMENT, micros), *size)
        erasing = None if self._erasing is None else self._erasing.draw(self._draws(Purpose.ERASE, micros), *size)
        kept = [self._draw_kept(micro, schedules.kept_patches(micro.step)) for micro in micros]
        augmenting, erasing, kept = to_device((augmenting, erasing, kept), self._device)
        if self._augment is not None:
            images, targets = self._augment.apply(images, targets, augmenting)
        images = self._normalize(images)
        if self._erasing is not None and erasing is not None:
            images = self._erasing.apply(images, erasing)
        parts = (whole.split(len(images) // len(micros)) for whole in (images, targets, raw.indices))
        return [
            self._batch(micro, own, schedules.mix_prob(micro.step), *part)
            for micro, own, *part in zip(micros, kept, *parts, strict=True)
        ]

    def _draws(self, purpose: Purpose, micros: Sequence[MicroBatch]) -> Draws:
        generators = [torch_generator(purpose, self._recipe.seed, micro.step, micro.part) for micro in micros]
        return Draws(generators, self.share)

    def _draw_kept(self, micro: MicroBatch, count: int) -> Tensor | None:
        """The patches that a draw batch keeps, so many, rising; None where it keeps all."""
        patches = self._recipe.model.num_patches
        if count == patches:
            return None
        generator = torch_generator(Purpose.PATCH, self._recipe.seed, micro.step, micro.part)
        return torch.randperm(patches, generator=generator)[:count].sort().values

    def _batch(
        self, micro: MicroBatch, kept: Tensor | None, prob: float, images: Tensor, targets: Tensor, indices: Tensor
    ) -> Batch:
        """A batch of augmented images, mixed with this probability."""
        if self._mixing is not None:
            generator = numpy_generator(Purpose.MIX, self._recipe.seed, micro.step, micro.part)
            mix = dataclasses.replace(self._mixing, prob=prob).draw(generator, *images.shape[2:])
            images, targets = self._mixing.apply(images, targets, mix)
        return Batch(images, targets, indices, micro, kept)


class EvalLoader:
    """Batches of normalised images: every readable image of a source once, in order; can be iterated again.

    Small sets are decoded here and kept. Of several processes each takes every size-th image, so that together they
    take all of them, each once.

    Args:
        source: The images.
        transform: How evaluation looks at them.
        batch_size: Images per batch.
        device: Where batches are needed.
        workers: Processes (threads for a small set) that decode; "auto" fits the machine.
        timeout_s: Seconds without an image after which those processes are started anew; 0 waits for ever.
        world: The processes that share the images.
        targets: The task's.

    Attributes:
        transform: How the images are looked at.
        device: Where batches are needed.
        skipped: Location of each unreadable image met so far, and why.

    Raises:
        UserError: No image can be read.
    """

    def __init__(
        self,
        source: Source,
        transform: EvalTransform,
        batch_size: int,
        device: torch.device | str,
        workers: int | str = "auto",
        timeout_s: int = 300,
        world: World = ALONE,
        targets: Targets = CLASS_LABELS,
    ) -> None:
        source.prepare()
        self._places = torch.arange(world.rank, len(source), world.size)
        self._source = source if world.size == 1 else SubsetSource(source, self._places.numpy(), "a share")
        self.transform, self.batch_size, self.device = transform, batch_size, torch.device(device)
        self._workers, self._timeout_s, self._targets = resolve_workers(workers), timeout_s, targets
        self._memory: DecodedImages | None = None
        self.skipped: dict[str, str] = {}
        height, width = transform.img_size
        if 0 < len(self._source) * transform.in_chans * height * width <= EVAL_MAX_BYTES:
            self._memory = decode(self._source, targets.evaluated(transform), targets, threads=self._workers or 1)
            self.skipped.update(self._memory.broken)

    def __len__(self) -> int:
        """Batches per pass, when no image is broken."""
        return -(-len(self._source) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for raw in self._from_memory() if self._memory is not None else self._from_workers():
            self.skipped.update(raw.broken)
            if len(raw.images):
                there = _to(raw, self.device)
                images = self.transform.normalize(there.images, self.device)
                yield Batch(images, there.targets, self._places[raw.indices])

    def _from_memory(self) -> Iterator[RawBatch]:
        memory = self._memory
        assert memory is not None
        for at in range(0, len(memory.images), self.batch_size):
            rows = slice(at, at + self.batch_size)
            yield RawBatch(memory.images[rows], memory.targets[rows], memory.indices[rows], {})

    def _from_workers(self) -> Iterator[RawBatch]:
        samples, places = EvalSamples(self._source, self.transform, self._targets), np.arange(len(self._source))
        keys = ((0, places[at : at + self.batch_size]) for at in range(0, len(places), self.batch_size))
        pin = self.device.type == "cuda"
        return decoded_batches(samples, keys, self._workers, self._timeout_s, pin_memory=pin)


def resolve_workers(workers: int | str) -> int:
    """Number of decoding processes; "auto" is one per CPU, shared by this machine's training processes, 16 at most."""
    return max(1, min(cpu_count() // local_size(), 16)) if isinstance(workers, str) else workers


def resolve_crop(recipe: Recipe) -> str:
    """The random crop that `augment.crop` stands for: images up to 32 px are padded, larger ones resized."""
    if recipe.augment.crop != "auto":
        return recipe.augment.crop
    return "pad" if max(recipe.model.height_width) <= SMALL_PX else "resized"


def _at_once(device: torch.device, batch_bytes: int) -> int:
    """Micro-batches that are augmented together: one where they stay in a CPU's cache, many where each call costs the
    host as much as the device. An image's numbers are the same."""
    return 1 if device.type == "cpu" else max(1, AT_ONCE_BYTES // batch_bytes)


def _augment_on_device(recipe: Recipe, device: torch.device, targets: Targets) -> BatchTransform | None:
    """What follows the crop, for whole batches on a GPU; None on CPUs, where workers do it."""
    return None if device.type == "cpu" else targets.batched(recipe, crop="none")


def _keep_in_memory(recipe: Recipe, source: Source, crop: str, targets: Targets) -> tuple[DecodedImages | None, str]:
    """Decode the source when `data.storage` and its size say so; else None; and what was decided, in words."""
    storage, size = recipe.data.storage, recipe.model.height_width
    if storage == "stream":
        return None, "streamed from disk, as asked"
    if crop == "resized":
        if storage == "memory":
            raise UserError(
                "data.storage=memory cannot make the random resized crops of augment.crop; "
                "give augment.crop=pad or none, or data.storage=stream"
            )
        return None, "streamed from disk: random resized crops need the whole images"
    first = first_readable(source, source.read)
    target_bytes = math.prod(targets.shape(size)) * targets.dtype.itemsize
    decoded_bytes = len(source) * (len(first.getbands()) * math.prod(size) + target_bytes)
    if storage == "auto" and (max(first.size) > MEMORY_MAX_SIDE or max(size) > MEMORY_MAX_SIDE):
        return None, f"streamed from disk: more than {MEMORY_MAX_SIDE} px a side"
    if storage == "auto" and decoded_bytes > MEMORY_MAX_BYTES:
        return None, f"streamed from disk: {decoded_bytes / 2**30:.1f} GiB decoded"
    fit = targets.fitted(size)

    def fitted(image: Image.Image, target: Tensor) -> tuple[Tensor, Tensor]:
        if storage == "auto" and image.size != first.size:
            raise UnequalSizes
        return fit(image, target)

    try:
        memory = decode(source, fitted, targets)
    except UnequalSizes:
        return None, "streamed from disk: the images differ in size"
    mib = memory.images.numel() / 2**20
    return memory, f"{len(memory.images)} images in memory, {mib:.0f} MiB, decoded in {memory.seconds:.1f} s"


def _to(raw: RawBatch, device: torch.device) -> RawBatch:
    images, targets = (part.to(device, non_blocking=True) for part in (raw.images, raw.targets))
    return RawBatch(images, targets, raw.indices, raw.broken)
