"""Samples by (epoch, position): what decoding processes are sent and make of it; small image sets, decoded once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from illama.console.progress import WorkProgress
from illama.data.decode.images import BrokenImage
from illama.data.eval_transform import EvalTransform
from illama.data.rng import Purpose, reseed
from illama.data.source import Source
from illama.data.targets import CLASS_LABELS, SampleTransform, Targets, demand_target
from illama.errors import UserError
from illama.recipes import Recipe
from illama.system.processes import cpu_count

# So many in a row, more than a class of ImageNet has, are no damaged files: the data set is gone. Looking at all of a
# large one would take hours to say so.
BROKEN_IN_A_ROW = 10_000
# What data.storage=auto keeps in memory: one size, at most this many pixels a side and bytes in all.
MEMORY_MAX_SIDE = 64
MEMORY_MAX_BYTES = 2 << 30
_CHUNK = 256
_T = TypeVar("_T")


class Sample(NamedTuple):
    """One image: its position in the source, (C, H, W) uint8 and its target, both None where it cannot be read."""

    position: int
    pixels: Tensor | None = None
    target: Tensor | None = None
    broken: tuple[BrokenImage, ...] = ()


@dataclass
class RawBatch:
    """Samples one behind the other.

    Attributes:
        images: (B, C, H, W) uint8.
        targets: (B, ...), in the task's type.
        indices: Positions in the source, (B,) int64, on the CPU.
        broken: Location of each unreadable image met on the way, and why.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    broken: dict[str, str]


class Samples(ABC):
    """What decoding processes make images of; sent to each of them once.

    Args:
        source: Where pictures and targets are.
        transform: Makes a sample of the two.
        targets: The task's.
        shape: (C, H, W) of every image.
    """

    def __init__(
        self, source: Source, transform: SampleTransform, targets: Targets, shape: tuple[int, int, int]
    ) -> None:
        self.source, self._transform = source, transform
        self.shape, self.target_shape, self.target_dtype = shape, targets.shape(shape[1:]), targets.dtype

    @abstractmethod
    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """One image of (epoch, position)."""

    def _sample(self, image: Any, i: int, broken: Sequence[BrokenImage] = ()) -> Sample:
        pixels, target = self._transform(image, self.source.target(i))
        demand_target(target, self.target_shape, self.target_dtype, self.source, i)
        return Sample(i, pixels, target, tuple(broken))


class TrainSamples(Samples):
    """Augmented images; each has random numbers of its own, whichever process makes it."""

    def __init__(
        self, recipe: Recipe, source: Source, crop: str, targets: Targets = CLASS_LABELS, *, on_device: bool = False
    ) -> None:
        transform = targets.per_image(recipe, crop, on_device=on_device)
        super().__init__(source, transform, targets, (recipe.model.in_chans, *recipe.model.height_width))
        self._seed = recipe.seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        """Leaves the global generators of Python, numpy and torch's CPU in another state.

        Raises:
            UserError: Neither it nor any of the next `BROKEN_IN_A_ROW` can be read.
        """
        epoch, wanted = key
        broken: list[BrokenImage] = []
        stand_ins = min(len(self.source), BROKEN_IN_A_ROW)
        for offset in range(stand_ins):  # the next readable image stands in for a broken one
            i = (wanted + offset) % len(self.source)
            reseed(Purpose.SAMPLE, self._seed, epoch, wanted)
            try:
                return self._sample(self.source.picture(i), i, broken)
            except BrokenImage as late:  # a picture may find out only when it is decoded; then it has no name yet
                broken.append(BrokenImage(self.source.location(i), late.why))
        raise UserError(
            f"{len(broken)} training images in a row cannot be read, the first: {broken[0]}; "
            "see to it that the data set is there and can be read, then run the same command again"
        )


class EvalSamples(Samples):
    """Images as evaluation sees them; a broken one comes without pixels. Epoch 0 is the only one."""

    def __init__(self, source: Source, transform: EvalTransform, targets: Targets = CLASS_LABELS) -> None:
        super().__init__(source, targets.evaluated(transform), targets, (transform.in_chans, *transform.img_size))

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        i = key[1]
        try:
            return self._sample(self.source.read(i), i)
        except BrokenImage as broken:
            return Sample(i, broken=(broken,))


class UnequalSizes(Exception):  # noqa: N818 - an answer, not a fault
    """The images do not have one size."""


@dataclass
class DecodedImages(RawBatch):
    """A source in memory: its readable images in order, and the others.

    Attributes:
        seconds: What decoding took.
    """

    seconds: float


def first_readable(source: Source, read: Callable[[int], _T]) -> _T:
    """What `read` makes of the first image that can be read; an error when there is none."""
    why = None
    for i in range(len(source)):
        try:
            return read(i)
        except BrokenImage as broken:
            why = why or broken
    raise UserError(f"{source.description}: no image can be read; the first: {why}")


def decode(
    source: Source, transform: SampleTransform, targets: Targets = CLASS_LABELS, threads: int | None = None
) -> DecodedImages:
    """Decode a whole source into memory, in threads, with a progress bar when it takes long.

    Args:
        source: Images that `transform` brings to one size.
        transform: Makes a sample of an image and its target.
        targets: The task's.
        threads: How many decode at a time; as many as there are CPUs by default.

    Raises:
        UnequalSizes: Two images differ in size after `transform`.
        UserError: No image can be read.
    """

    def sample(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return transform(source.read(i), source.target(i))

    def fill(rows: range) -> int:
        for i in rows:
            try:
                pixels, target = sample(i)
            except BrokenImage as broken:
                skipped[i] = broken
                continue
            if pixels.shape != shape:
                raise UnequalSizes(f"{source.location(i)} is {tuple(pixels.shape)}, the first image {tuple(shape)}")
            demand_target(target, whole_targets.shape[1:], targets.dtype, source, i)
            as_numpy[i] = pixels.numpy()
            whole_targets[i] = target
        return len(rows)

    start = time.perf_counter()
    shape = first_readable(source, sample)[0].shape
    images = torch.empty((len(source), *shape), dtype=torch.uint8)
    whole_targets = torch.empty((len(source), *targets.shape((shape[1], shape[2]))), dtype=targets.dtype)
    as_numpy = images.numpy()
    skipped: dict[int, BrokenImage] = {}
    threads = threads or cpu_count()
    chunk = min(_CHUNK, -(-len(source) // threads))  # a few images occupy all threads too
    chunks = [range(at, min(at + chunk, len(source))) for at in range(0, len(source), chunk)]
    with ThreadPoolExecutor(threads) as pool, WorkProgress("decoding", len(source)) as progress:
        try:
            for count in pool.map(fill, chunks):
                progress.advance(count)
        except UnequalSizes:
            pool.shutdown(cancel_futures=True)
            raise
    good = torch.from_numpy(np.setdiff1d(np.arange(len(source)), np.array(sorted(skipped), dtype=np.int64)))
    return DecodedImages(
        images[good] if skipped else images,
        whole_targets[good] if skipped else whole_targets,
        good,
        {skipped[i].where: skipped[i].why for i in sorted(skipped)},
        time.perf_counter() - start,
    )
