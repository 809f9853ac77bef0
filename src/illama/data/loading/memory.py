"""Small image sets, decoded once and kept as one uint8 tensor."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from illama.console.progress import WorkProgress
from illama.data.decode.images import BrokenImage
from illama.data.loading.samples import RawBatch
from illama.data.source import Source
from illama.data.targets import CLASS_LABELS, SampleTransform, Targets, demand_target
from illama.errors import UserError
from illama.system.processes import cpu_count

# What data.storage=auto keeps in memory: one size, at most this many pixels a side and bytes in all.
MEMORY_MAX_SIDE = 64
MEMORY_MAX_BYTES = 2 << 30
_CHUNK = 256
_T = TypeVar("_T")


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
