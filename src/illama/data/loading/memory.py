"""Small image sets, decoded once and kept as one uint8 tensor."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from illama.console.progress import WorkProgress
from illama.data.decode.images import BrokenImage
from illama.data.eval_transform import to_tensor
from illama.data.source import Source
from illama.errors import UserError

# What data.storage=auto keeps in memory: one size, at most this many pixels a side and bytes in all.
MEMORY_MAX_SIDE = 64
MEMORY_MAX_BYTES = 2 << 30
_CHUNK = 256


class UnequalSizes(Exception):  # noqa: N818 - an answer, not a fault
    """The images do not have one size."""


@dataclass
class DecodedImages:
    """A source in memory.

    Attributes:
        images: (n, C, H, W) uint8.
        labels: (n,) int64.
        indices: Position of each image in the source, (n,) int64.
        skipped: Location of each unreadable image, and why.
        seconds: What decoding took.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    skipped: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def first_image(source: Source) -> Image.Image:
    """The first readable image; an error when there is none."""
    why = None
    for i in range(len(source)):
        try:
            return source.read(i)
        except BrokenImage as broken:
            why = why or broken
    raise UserError(f"{source.description}: no image can be read; the first: {why}")


def decode(
    source: Source, transform: Callable[[Image.Image], torch.Tensor] = to_tensor, threads: int | None = None
) -> DecodedImages:
    """Decode a whole source into memory, in threads, with a progress bar when it takes long.

    Args:
        source: Images that `transform` brings to one size.
        transform: Image to (C, H, W) uint8.
        threads: How many decode at a time; as many as there are CPUs by default.

    Returns:
        The readable images in order; the others are listed in `skipped`.

    Raises:
        UnequalSizes: Two images differ in size after `transform`.
        UserError: No image can be read.
    """
    start = time.perf_counter()
    shape = transform(first_image(source)).shape
    images = torch.empty((len(source), *shape), dtype=torch.uint8)
    whole = images.numpy()
    skipped: dict[int, BrokenImage] = {}

    def fill(rows: range) -> int:
        for i in rows:
            try:
                one = transform(source.read(i))
            except BrokenImage as broken:
                skipped[i] = broken
                continue
            if one.shape != shape:
                raise UnequalSizes(f"{source.location(i)} is {tuple(one.shape)}, the first image {tuple(shape)}")
            whole[i] = one.numpy()
        return len(rows)

    chunks = [range(at, min(at + _CHUNK, len(source))) for at in range(0, len(source), _CHUNK)]
    with ThreadPoolExecutor(threads or cpu_count()) as pool, WorkProgress("decoding", len(source)) as progress:
        try:
            for count in pool.map(fill, chunks):
                progress.advance(count)
        except UnequalSizes:
            pool.shutdown(cancel_futures=True)
            raise
    good = np.setdiff1d(np.arange(len(source)), np.array(sorted(skipped), dtype=np.int64))
    return DecodedImages(
        images[torch.from_numpy(good)] if skipped else images,
        torch.from_numpy(source.labels[good]),
        torch.from_numpy(good),
        {skipped[i].where: skipped[i].why for i in sorted(skipped)},
        time.perf_counter() - start,
    )
