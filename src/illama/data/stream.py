"""Image sets that are decoded anew in every epoch, by worker processes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from illama.data.batch import MicroBatch, TrainingOrder
from illama.data.images import BrokenImage
from illama.data.rng import Purpose, global_seed
from illama.data.source import Source
from illama.data.transforms import EvalTransform, cover
from illama.errors import UserError
from illama.timm_bridge import import_timm

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass
class RawBatch:
    """What the workers send: (B, C, H, W) uint8, (B,) int64 twice, and the broken images met on the way."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    broken: dict[str, str]

    def pin_memory(self) -> RawBatch:
        """Called by the data loader so that copies to a GPU run beside its work."""
        return RawBatch(self.images.pin_memory(), self.labels.pin_memory(), self.indices, self.broken)


Sample = tuple[torch.Tensor | None, int, int, list[BrokenImage]]


def collate(samples: Sequence[Sample]) -> RawBatch:
    """Stack the readable samples."""
    good = [(image, label, i) for image, label, i, _ in samples if image is not None]
    return RawBatch(
        torch.stack([image for image, _, _ in good]) if good else torch.empty(0, dtype=torch.uint8),
        torch.tensor([label for _, label, _ in good], dtype=torch.int64),
        torch.tensor([i for _, _, i in good], dtype=torch.int64),
        {broken.where: broken.why for *_, all_broken in samples for broken in all_broken},
    )


class TrainSamples(Dataset[Sample]):
    """Augmented images by (epoch, position); each has random numbers of its own, whichever process makes it."""

    def __init__(self, source: Source, transform: Transform, seed: int) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, wanted = key
        broken = []
        for offset in range(len(self._source)):  # the next readable image stands in for a broken one
            i = (wanted + offset) % len(self._source)
            try:
                image = self._source.read(i)
            except BrokenImage as found:
                broken.append(found)
                continue
            with global_seed(Purpose.SAMPLE, self._seed, epoch, wanted):
                return self._transform(image), int(self._source.labels[i]), i, broken
        return None, -1, wanted, broken


class EvalSamples(Dataset[Sample]):
    """Images by position as evaluation sees them; a broken one comes without pixels."""

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self._source = source
        self._transform = transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, i: int) -> Sample:
        try:
            return self._transform(self._source.read(i)), int(self._source.labels[i]), i, []
        except BrokenImage as broken:
            return None, -1, i, [broken]


class _Keys:
    """The training order as a batch sampler of (epoch, position)."""

    def __init__(self, order: TrainingOrder, start_step: int) -> None:
        self._order = order
        self._start = start_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for micro in self._order.from_step(self._start):
            yield [(micro.epoch, int(i)) for i in micro.chosen]


def stream_training(
    samples: TrainSamples, order: TrainingOrder, start_step: int, workers: int, *, pin_memory: bool
) -> Iterator[tuple[MicroBatch, RawBatch]]:
    """Micro-batches from a step on, decoded by `workers` processes (0: by this one).

    Raises:
        UserError: Not one image can be read.
    """
    loader: DataLoader[Sample] = DataLoader(
        samples,
        batch_sampler=_Keys(order, start_step),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader would draw from the global state, which a resumed run restores
    )
    for micro, raw in zip(order.from_step(start_step), loader, strict=True):
        if len(raw.labels) < len(micro.chosen):
            where, why = next(iter(raw.broken.items()))
            raise UserError(f"none of the {order.num_images} training images can be read; {where}: {why}")
        yield micro, raw


def stream_evaluation(
    source: Source, transform: EvalTransform, batch_size: int, workers: int, *, pin_memory: bool
) -> Iterator[RawBatch]:
    """All readable images once, in order."""
    loader: DataLoader[Sample] = DataLoader(
        EvalSamples(source, transform),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),
    )
    yield from loader


@dataclass(frozen=True)
class PaddedCrop:
    """Random crop of `size` (height, width) after `padding` black pixels on each side; first resized to cover."""

    size: tuple[int, int]
    padding: int

    def __call__(self, image: Image.Image) -> Image.Image:
        image = fit(image, self.size)
        left, top = (random.randint(-self.padding, self.padding) for _ in range(2))
        return image.crop((left, top, left + image.width, top + image.height))  # outside is black


@dataclass(frozen=True)
class Fit:
    """No random crop: the image covers `size` (height, width), the rest is cut evenly."""

    size: tuple[int, int]

    def __call__(self, image: Image.Image) -> Image.Image:
        return fit(image, self.size)


@dataclass(frozen=True)
class Rotate:
    """Turn by a random angle of at most `degrees`; uncovered corners are black."""

    degrees: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.rotate(random.uniform(-self.degrees, self.degrees), Image.Resampling.BILINEAR)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image itself where it has the (height, width) wanted, else resized to cover and cropped evenly."""
    return image if image.size == size[::-1] else cover(image, size)


def train_transform(recipe: Recipe, crop: str) -> Transform:
    """timm's training transform for one image, up to uint8 (C, H, W); erasing follows on the device.

    Args:
        recipe: Its `augment` section decides.
        crop: "resized", "pad" or "none".
    """
    import_timm()
    from timm.data import create_transform

    augment, data, size = recipe.augment, recipe.data, recipe.model.height_width
    transform = create_transform(
        (recipe.model.in_chans, *size),
        is_training=True,
        scale=augment.crop_scale,
        ratio=augment.crop_ratio,
        hflip=augment.hflip,
        color_jitter=augment.color_jitter,
        auto_augment=augment.randaugment,
        interpolation="bicubic",
        mean=tuple(data.mean),
        std=tuple(data.std),
        normalize=False,
    )
    if crop != "resized":
        transform.transforms[0] = PaddedCrop(size, augment.crop_padding) if crop == "pad" else Fit(size)
    if augment.rotate > 0:
        transform.transforms.insert(2 if augment.hflip > 0 else 1, Rotate(augment.rotate))
    return transform
