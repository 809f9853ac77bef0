"""`illama bench data`: how many images per second a recipe's own training loader delivers, beside timm's loader."""

from __future__ import annotations

import dataclasses
import io
import itertools
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import OtherLoad, unless_out_of_memory
from illama.bench.networks import Treatment, build_illama
from illama.bench.options import DataOptions
from illama.bench.report import CaseRow, Group, Report, bench_environment, check_folder
from illama.console.progress import WorkProgress
from illama.data import look, open_source
from illama.data.augment.per_image import timm_options, train_transform
from illama.data.decode.images import BrokenImage
from illama.data.decode.lazy_image import Picture, ResizedCrop, resize
from illama.data.loading.loader import TrainLoader, resolve_crop, resolve_workers
from illama.data.loading.workers import one_thread
from illama.data.rng import Purpose, global_seed
from illama.data.source import Source
from illama.device import resolve_device, resolve_precision
from illama.device.timers import Timer, timer_for
from illama.errors import UserError
from illama.evaluation.subject import choose_data
from illama.optional import import_timm
from illama.recipes import BatchPlan, DataConfig, Recipe, load_recipe

ROUND_S = 2.0  # of one loader: its batches come in bursts, one from each worker
EPOCH_BATCHES = 1000  # a small folder is listed so often that timm's loader meets no end of an epoch
STEPS = 3
SHARDED_BYTES = 1 << 30  # a folder's images up to this much are measured from shards as well

Batches = Iterator[Any]


class LoaderTimer:
    """Times batches of a loader that is started afresh: workers of one loader never run while another is timed.

    The first batches, one from each worker, are not counted; they wait for processes to start.

    Args:
        device: Where batches are needed; its work is waited for.
        skip: Batches not counted.
    """

    def __init__(self, device: torch.device, skip: int) -> None:
        self._timer = timer_for(device)
        self._skip = skip

    def seconds(self, run: Callable[[], object], calls: int) -> float:
        stream = cast("Generator[Any, None, None]", run())
        try:
            for _ in range(self._skip):
                next(stream)
            return self._timer.seconds(lambda: next(stream), calls)
        finally:
            stream.close()


def bench_data(source: str, overrides: Sequence[str], options: DataOptions) -> Report:
    """Measure the training loader of a recipe on a data set.

    Args:
        source: A folder, a parquet file or a data set's name.
        overrides: Changes of the recipe, `section.key=value`.
        options: What to measure.

    Raises:
        UserError: Recipe, data set or device cannot be used.
    """
    device = resolve_device(options.device)
    check_folder(options.out)
    recipe = load_recipe(options.recipe or ("digits_micro" if source == "digits" else "imagenet1k_tiny"), overrides)
    with ExitStack() as stack:
        progress = stack.enter_context(WorkProgress(f"{recipe.name} on {source}", 1, unit=None))
        images, recipe, batch = _prepare(source, recipe, options)
        shards = _as_shards(images, stack)
        cases, notes = _cases(images, shards, recipe, batch, device)
        workers = max(1, resolve_workers(recipe.data.workers))
        timer = LoaderTimer(device, skip=workers)
        names = [case.name for case in cases]
        rounds = _measure(cases, timer, workers, options, progress)
        rows = {name: CaseRow(name, failure=why) for name, why in rounds.failures.items()}
        for case in cases:
            ratio = None if case.name == names[0] else rounds.speedup(names[0], over=case.name)
            rows[case.name] = CaseRow.of(case, rounds, None, "", ratio=ratio)
        progress.tell(1.0, "training steps of the same network")
        step: list[str] = []
        with unless_out_of_memory(lambda why: step.append(f"A training step could not be timed: {why}.")):
            step.append(_step_line(recipe, batch, device, rows[names[0]].items_per_s))
        profile = {}
        streams_crops = resolve_crop(recipe) == "resized"
        if streams_crops:
            progress.tell(1.0, "where the time of an image goes")
            alone = _loader(images, _with_workers(recipe, 0), batch, device)
            profile["one image, one core"] = stages_of_one_image(images, recipe, device, alone)
        if streams_crops and options.out is not None:
            draw_samples(images, recipe, options.out / "data_samples.png")
    title = f"{recipe.name}: batches of {batch}, {recipe.data.workers} workers, {recipe.model.height_width} px"
    lines = (images.description, "Time of reading and augmenting alone, batches thrown away.", *step)
    report = Report(
        "data",
        "images/s",
        "illama is x times as fast",
        "illama is x\ntimes as fast",
        bench_environment(device),
        lines,
        (Group(title, tuple(rows[name] for name in names), rounds, notes, profile_s=profile),),
    )
    return report.demand_a_time("give a smaller --batch")


def _prepare(source: str, recipe: Recipe, options: DataOptions) -> tuple[Source, Recipe, int]:
    """The open training split, the recipe that reads it, and images per batch."""
    data = choose_data(recipe, source)
    if options.workers is not None:
        data = data.model_copy(update={"workers": options.workers})
    # The recipe's own split of its own data set may set a share aside; it does so here as well.
    data = data.model_copy(update={"val_fraction": recipe.data.val_fraction})
    # Nothing is evaluated here, so class folders without splits serve as they are.
    layout = look(data)
    split = "train" if data.val_fraction > 0 or layout.splits else "auto"
    images = layout.open(split, in_chans=recipe.model.in_chans, seed=recipe.seed)
    # The head has no part in loading: it takes the classes of this data set.
    model = dataclasses.replace(recipe.model, num_classes=len(images.classes))
    batch = options.batch or min(recipe.train.device_batch or recipe.train.total_batch, len(images) // 2 * 2)
    return images, recipe.model_copy(update={"data": data, "model": model}), batch


def _with_workers(recipe: Recipe, workers: int) -> Recipe:
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"workers": workers})})


def _loader(images: Source, recipe: Recipe, batch: int, device: torch.device) -> TrainLoader:
    return TrainLoader(recipe, images, device, BatchPlan(batch, 1, batch, recipe.optimizer.lr))


def _cases(
    images: Source, shards: Source | None, recipe: Recipe, batch: int, device: torch.device
) -> tuple[list[Case], tuple[str, ...]]:
    loader = _loader(images, recipe, batch, device)
    cases = [Case("illama", lambda: loader.batches(), batch)]
    notes = [f"illama: {loader.description}"]
    if not Path(images.location(0)).is_file():
        notes.append("timm's loader is compared on image folders only")
    elif resolve_crop(recipe) != "resized":
        notes.append("timm's loader has random resized crops only; add augment.crop=resized to compare with it")
    elif batch % 2 and recipe.augment.mixes:
        notes.append("timm mixes batches of an even number of images only")
    else:
        cases.append(Case("timm create_loader", lambda: _timm_batches(images, recipe, batch, device), batch))
    if shards is not None:
        from_shards = _loader(shards, recipe, batch, device)
        cases.append(Case("illama, the same images in a shard", lambda: from_shards.batches(), batch))
    return cases, tuple(notes)


def _as_shards(images: Source, stack: ExitStack) -> Source | None:
    """The images of a folder in one WebDataset shard in a temporary folder; None where they are no files, or large."""
    if not Path(images.location(0)).is_file():
        return None
    if sum(_size(images.location(i)) for i in range(len(images))) > SHARDED_BYTES:
        return None
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="illama-bench-")))
    with tarfile.open(folder / "train-0000.tar", "w") as shard:
        for i in range(len(images)):
            try:
                content = images.encoded(i)
            except BrokenImage:
                continue
            ending = Path(images.location(i)).suffix
            for name, part in ((f"{i:08d}{ending}", content), (f"{i:08d}.cls", str(int(images.labels[i])).encode())):
                entry = tarfile.TarInfo(name)
                entry.size = len(part or b"")
                shard.addfile(entry, io.BytesIO(part or b""))
    (folder / "classes.txt").write_text("\n".join(images.classes), encoding="utf-8")
    return open_source(DataConfig(name="wds/sharded", path=str(folder)), "train", in_chans=images.in_chans)


def _size(file: str) -> int:
    path = Path(file)
    return path.stat().st_size if path.is_file() else 0


def _timm_batches(images: Source, recipe: Recipe, batch: int, device: torch.device) -> Batches:
    """timm's standard training loader with the recipe's policy, mixing included, without end."""
    import_timm()
    from timm.data import FastCollateMixup, ImageDataset, Mixup, create_loader

    augment, workers = recipe.augment, resolve_workers(recipe.data.workers)
    dataset = ImageDataset(str(Path(images.location(0)).parents[1]))
    dataset.reader.samples *= max(1, EPOCH_BATCHES * batch // len(dataset))
    mixing = None
    if augment.mixes:
        mixing = {
            "mixup_alpha": augment.mixup,
            "cutmix_alpha": augment.cutmix,
            "prob": augment.mix_prob,
            "switch_prob": augment.mix_switch_prob,
            "label_smoothing": augment.label_smoothing,
            "num_classes": recipe.model.num_classes,
        }
    prefetcher = device.type == "cuda"  # timm's own choice: normalise and mix on the GPU
    loader = create_loader(
        dataset,
        (recipe.model.in_chans, *recipe.model.height_width),
        batch,
        is_training=True,
        use_prefetcher=prefetcher,
        re_prob=augment.erase_prob,
        re_mode=augment.erase_mode,
        re_count=augment.erase_count,
        **timm_options(recipe),
        num_workers=workers,
        pin_memory=prefetcher,
        persistent_workers=False,
        device=device,
        collate_fn=FastCollateMixup(**mixing) if prefetcher and mixing else None,
    )
    mix = Mixup(**mixing) if mixing and not prefetcher else None
    for pixels, labels in loader:
        pixels, labels = pixels.to(device), labels.to(device)
        yield (pixels, labels) if mix is None else mix(pixels, labels)


def _measure(cases: list[Case], timer: Timer, workers: int, options: DataOptions, progress: WorkProgress) -> Rounds:
    """Rounds of a whole number of batches from each worker."""
    calls = {}
    for case in cases:
        progress.tell(0.0, f"starting {case.name}")
        burst_s = timer.seconds(case.run, workers)
        calls[case.name] = workers * max(1, round(ROUND_S / max(burst_s, 1e-3)))
    effort = Effort(options.seconds, options.rounds)
    return measure(cases, effort, timer=timer, load=OtherLoad.here(), on_progress=progress.tell, calls=calls)


def _step_line(recipe: Recipe, batch: int, device: torch.device, loaded_per_s: float | None) -> str:
    """What the loader's speed means for training: how long a step of the recipe's network would wait for it."""
    precision = resolve_precision(recipe.train.precision, device)
    step_batch = batch if device.type == "cuda" else min(batch, 16)
    run = build_illama(Treatment(recipe.model, step_batch, precision, device, training=True)).case.run
    timer = timer_for(device)
    timer.seconds(run, 1)
    trained_per_s = STEPS * step_batch / timer.seconds(run, STEPS)
    text = (
        f"A training step of this recipe's network takes {trained_per_s:,.0f} images/s ({precision}, batch "
        f"{step_batch}, {STEPS} steps)"
    )
    if loaded_per_s is None:
        return f"{text}."
    waits = max(0.0, 1 - loaded_per_s / trained_per_s)
    text += f"; fed by this loader it would wait {100 * waits:.0f} % of the time"
    return text + ("." if device.type == "cuda" else ", and more where both share the CPU.")


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
    from matplotlib.figure import Figure

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
