"""What happens to a training image: where its time goes on one core, and a picture of what comes out, beside timm's."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from illama.data.augment.per_image import timm_options, train_transform
from illama.data.decode.images import BrokenImage
from illama.data.decode.lazy_image import Picture, ResizedCrop, resize
from illama.data.loading.loader import TrainLoader
from illama.data.loading.workers import one_thread
from illama.data.rng import Purpose, global_seed
from illama.data.source import Source
from illama.device.timers import timer_for
from illama.errors import UserError
from illama.optional import import_timm
from illama.recipes import Recipe

TIMED = 96  # images
DRAWN, DRAWS = 8, 3


def stages_of_one_image(source: Source, recipe: Recipe, device: torch.device, loader: TrainLoader) -> dict[str, float]:
    """Seconds per image of each step of the loader, in this process on one core.

    Args:
        source: Its first images are used.
        recipe: With random resized crops.
        device: Where the loader finishes its batches.
        loader: Of the recipe, with data.workers=0; the step that is left over is what it does to whole batches.

    Returns:
        Kind of work -> seconds.
    """
    pictures = _first_pictures(source)
    stages: dict[str, float] = {}
    with one_thread(torch.device("cpu")), global_seed(Purpose.SAMPLE, recipe.seed, 0):
        transform = train_transform(recipe, "resized", on_device=device.type != "cpu")
        assert isinstance(transform.crop, ResizedCrop)
        crop = transform.crop
        stages["read the file"] = _cpu_s(lambda i: source.encoded(i), pictures)
        stages["find its size"] = max(0.0, _cpu_s(lambda i: source.picture(i), pictures) - stages["read the file"])
        boxes = {i: crop.draw(*picture.size) for i, picture in pictures.items()}
        stages["decode"] = _cpu_s(lambda i: pictures[i].region(boxes[i], crop.size), pictures)
        regions = {i: picture.region(boxes[i], crop.size).copy() for i, picture in pictures.items()}
        stages["crop and resize"] = _cpu_s(lambda i: resize(regions[i], crop.size), pictures)
        resized = {i: resize(region, crop.size) for i, region in regions.items()}
        stages["flip, RandAugment or jitter"] = _cpu_s(lambda i: transform.finish(resized[i]), pictures, random=True)
        finished = {i: transform.finish(image) for i, image in resized.items()}
        batch = torch.empty((len(pictures), *transform.shape), dtype=torch.uint8)
        rows = {i: row for row, i in enumerate(pictures)}
        stages["into the batch"] = _cpu_s(lambda i: batch[rows[i]].copy_(finished[i]), pictures)
        whole = _seconds_per_image(loader, device)
    stages["the rest, of whole batches: normalise, erase, mix"] = max(0.0, whole - sum(stages.values()))
    return stages


def _first_pictures(source: Source) -> dict[int, Picture]:
    """The first images that can be read, by position."""
    pictures: dict[int, Picture] = {}
    for i in range(len(source)):
        try:
            picture = source.picture(i)
            picture.image()
        except BrokenImage:
            continue
        pictures[i] = picture
        if len(pictures) == TIMED:
            break
    return pictures


def _cpu_s(step: Callable[[int], object], pictures: dict[int, Picture], *, random: bool = False) -> float:
    """CPU seconds of a step for an image: the least of two passes, of a random step the mean of four."""
    times = []
    for _ in range(4 if random else 2):
        start = time.process_time()
        for i in pictures:
            step(i)
        times.append((time.process_time() - start) / len(pictures))
    return sum(times) / len(times) if random else min(times)


def _seconds_per_image(loader: TrainLoader, device: torch.device) -> float:
    stream = loader.batches()
    size = len(next(stream).indices)
    batches = max(1, round(2 * TIMED / size))
    seconds = timer_for(device).seconds(lambda: list(itertools.islice(stream, batches)), 1)
    stream.close()
    return seconds / (batches * size)


def draw_samples(source: Source, recipe: Recipe, file: Path) -> None:
    """Save a grid: each row one image, drawn three times by either side; before erasing and mixing.

    Raises:
        UserError: The file cannot be written.
    """
    import_timm()
    from timm.data import create_transform

    size = (recipe.model.in_chans, *recipe.model.height_width)
    ours = train_transform(recipe, "resized")
    theirs = create_transform(size, is_training=True, normalize=False, **timm_options(recipe))
    figure = Figure(figsize=(1.55 * (2 * DRAWS + 1) + 0.3, 1.55 * DRAWN + 0.9), layout="constrained")
    columns = figure.add_gridspec(1, 3, width_ratios=(1, DRAWS, DRAWS))
    left, middle, right = (figure.add_subfigure(columns[0, place]) for place in range(3))
    middle.suptitle("illama")
    right.suptitle("timm create_transform")
    left.suptitle("image")
    rows = [middle.subplots(DRAWN, DRAWS), right.subplots(DRAWN, DRAWS)]
    whole = left.subplots(DRAWN, 1)
    for axes in (*rows[0].flat, *rows[1].flat, *whole.flat):
        axes.set_axis_off()
    for row, i in enumerate(_spread_out(source)):
        image = source.read(i)
        whole[row].imshow(np.asarray(image), cmap="gray")
        for draw in range(DRAWS):
            for side, axes in enumerate(rows):
                with global_seed(Purpose.SAMPLE, recipe.seed, draw, i):
                    pixels: torch.Tensor = theirs(image) if side else ours(source.picture(i))
                axes[row, draw].imshow(pixels.permute(1, 2, 0).numpy(), cmap="gray")
    policy = recipe.augment.randaugment or f"color_jitter {recipe.augment.color_jitter:g}"
    figure.suptitle(f"{recipe.name}: crop, flip, {policy}; random numbers differ", fontsize=10)
    try:
        figure.savefig(file, dpi=80)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _spread_out(source: Source) -> list[int]:
    """Images spread over the source that can be read."""
    readable: list[int] = []
    for i in np.unique(np.linspace(0, len(source) - 1, 3 * DRAWN).astype(int)).tolist():
        try:
            source.read(i)
        except BrokenImage:
            continue
        readable.append(i)
    return readable[:: max(1, len(readable) // DRAWN)][:DRAWN]
