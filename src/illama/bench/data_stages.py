"""Where the time of one training image goes, on one core."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from illama.data.augment.per_image import TrainTransform, train_transform
from illama.data.decode.images import BrokenImage
from illama.data.decode.lazy_image import Picture, ResizedCrop, resize
from illama.data.loading.loader import TrainLoader
from illama.data.loading.workers import one_thread
from illama.data.rng import Purpose, global_seed
from illama.data.source import Source
from illama.device.timers import timer_for
from illama.recipes import Recipe

IMAGES = 96
_T = TypeVar("_T")
# Kind of work -> seconds per image.
Stages = dict[str, float]


def stages_of_one_image(source: Source, recipe: Recipe, device: torch.device, loader: TrainLoader) -> Stages:
    """Seconds per image of each step of the loader, in this process on one core.

    Args:
        source: Its first images are used.
        recipe: With random resized crops.
        device: Where the loader finishes its batches.
        loader: Of the recipe, with data.workers=0; the step that is left over is what it does to whole batches.
    """
    pictures = _readable(source)
    stages: Stages = {}
    with one_thread(torch.device("cpu")), global_seed(Purpose.SAMPLE, recipe.seed, 0):
        transform = train_transform(recipe, "resized", on_device=device.type != "cpu")
        assert isinstance(transform.crop, ResizedCrop)
        crop = transform.crop
        stages["read the file"] = _mean(lambda i: source.encoded(i), pictures)
        stages["find its size"] = max(0.0, _mean(lambda i: source.picture(i), pictures) - stages["read the file"])
        boxes = {i: crop.draw(*picture.size) for i, picture in pictures.items()}
        stages["decode"] = _mean(lambda i: pictures[i].region(boxes[i], crop.size), pictures)
        regions = {i: picture.region(boxes[i], crop.size).copy() for i, picture in pictures.items()}
        stages["crop and resize"] = _mean(lambda i: resize(regions[i], crop.size), pictures)
        resized = {i: resize(region, crop.size) for i, region in regions.items()}
        after = _After(transform, resized)
        stages["flip, RandAugment or jitter"] = _mean(after, pictures, repeats=4)
        made = {i: after(i) for i in pictures}
        batch = torch.empty((len(pictures), *transform.shape), dtype=torch.uint8)
        rows = {i: row for row, i in enumerate(pictures)}
        stages["into the batch"] = _mean(lambda i: batch[rows[i]].copy_(made[i]), pictures)
        whole = _seconds_per_image(loader, device)
    stages["the rest, of whole batches: normalise, erase, mix"] = max(0.0, whole - sum(stages.values()))
    return stages


class _After:
    """What the transform does after the crop."""

    def __init__(self, transform: TrainTransform, resized: dict[int, torch.Tensor]) -> None:
        self._transform = transform
        self._resized = resized

    def __call__(self, i: int) -> torch.Tensor:
        return self._transform.finish(self._resized[i])


def _readable(source: Source) -> dict[int, Picture]:
    """The first images that can be read, by position."""
    found: dict[int, Picture] = {}
    for i in range(len(source)):
        try:
            picture = source.picture(i)
            picture.image()
        except BrokenImage:
            continue
        found[i] = picture
        if len(found) == IMAGES:
            break
    return found


def _mean(step: Callable[[int], object], pictures: dict[int, Picture], repeats: int = 2) -> float:
    """CPU seconds of a step, the least of several passes over the images (random steps: their mean)."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for i in pictures:
            step(i)
        times.append((time.process_time() - start) / len(pictures))
    return min(times) if repeats == 2 else sum(times) / repeats


def _seconds_per_image(loader: TrainLoader, device: torch.device) -> float:
    stream = loader.batches()
    first = next(stream)
    timer = timer_for(device)
    batches = max(1, round(2 * IMAGES / len(first.indices)))
    seconds = timer.seconds(lambda: list(itertools.islice(stream, batches)), 1)
    stream.close()
    return seconds / (batches * len(first.indices))
