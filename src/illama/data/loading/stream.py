"""Image sets that are decoded anew in every epoch, by worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from illama.data.augment.per_image import TrainTransform, fit, train_transform
from illama.data.decode.images import BrokenImage
from illama.data.eval_transform import EvalTransform
from illama.data.loading.batch import MicroBatch, TrainingOrder
from illama.data.loading.decoder import Key, Keys, Sample
from illama.data.loading.workers import RawBatch, decoded_batches
from illama.data.rng import Purpose, reseed
from illama.data.source import Source
from illama.errors import UserError

__all__ = [
    "EvalSamples",
    "RawBatch",
    "TrainSamples",
    "fit",
    "stream_evaluation",
    "stream_training",
    "train_transform",
]

# So many in a row, more than a class of ImageNet has, are no damaged files: the data set is gone. Looking at all of a
# large one would take hours to say so.
BROKEN_IN_A_ROW = 10_000


class TrainSamples:
    """Augmented images by (epoch, position); each has random numbers of its own, whichever process makes it.

    Attributes:
        shape: (C, H, W) of every image.
    """

    def __init__(self, source: Source, transform: TrainTransform, seed: int) -> None:
        self._source = source
        self._transform = transform
        self._seed = seed
        self.shape = transform.shape

    def location(self, position: int) -> str:
        """Where an image comes from."""
        return self._source.location(position)

    def __getitem__(self, key: Key) -> Sample:
        """One image; leaves the global generators of Python, numpy and torch's CPU in another state.

        Raises:
            UserError: Neither it nor any of the next `BROKEN_IN_A_ROW` can be read.
        """
        epoch, wanted = key
        broken: list[BrokenImage] = []
        stand_ins = min(len(self._source), BROKEN_IN_A_ROW)
        for offset in range(stand_ins):  # the next readable image stands in for a broken one
            i = (wanted + offset) % len(self._source)
            reseed(Purpose.SAMPLE, self._seed, epoch, wanted)
            try:
                return self._transform(self._source.picture(i)), int(self._source.labels[i]), i, broken
            except BrokenImage as found:  # a picture may find out only when it is decoded; then it has no name yet
                broken.append(BrokenImage(self._source.location(i), found.why))
        raise UserError(
            f"{len(broken)} training images in a row cannot be read, the first: {broken[0]}; "
            "see to it that the data set is there and can be read, then run the same command again"
        )


class EvalSamples:
    """Images by position as evaluation sees them; a broken one comes without pixels.

    Attributes:
        shape: (C, H, W) of every image.
    """

    def __init__(self, source: Source, transform: EvalTransform) -> None:
        self._source = source
        self._transform = transform
        self.shape = (transform.in_chans, *transform.img_size)

    def location(self, position: int) -> str:
        """Where an image comes from."""
        return self._source.location(position)

    def __getitem__(self, key: Key) -> Sample:
        i = key[1]
        try:
            return self._transform(self._source.read(i)), int(self._source.labels[i]), i, []
        except BrokenImage as broken:
            return None, -1, i, [broken]


def stream_training(
    samples: TrainSamples,
    order: TrainingOrder,
    start_step: int,
    workers: int,
    timeout_s: int = 300,
    *,
    pin_memory: bool,
) -> Iterator[tuple[MicroBatch, RawBatch]]:
    """Micro-batches from a step on, decoded by `workers` processes (0: by this one).

    Args:
        samples: Makes the images.
        order: Which images come when.
        start_step: Optimizer step to begin with.
        workers: Number of processes.
        timeout_s: Seconds without an image after which a worker is started again; 0 waits for ever.
        pin_memory: Page-locked memory, from which copies to a GPU run beside its work.

    Raises:
        UserError: The images are gone, or workers die or hang again and again.
    """
    keys: Iterator[Keys] = ((micro.epoch, micro.chosen) for micro in order.from_step(start_step))
    batches = decoded_batches(samples, keys, workers, timeout_s, pin_memory=pin_memory)
    yield from zip(order.from_step(start_step), batches, strict=True)


def stream_evaluation(
    source: Source,
    transform: EvalTransform,
    batch_size: int,
    workers: int,
    timeout_s: int = 300,
    *,
    pin_memory: bool,
) -> Iterator[RawBatch]:
    """All readable images once, in order; see `stream_training` for the arguments.

    Raises:
        UserError: Workers die or hang again and again.
    """
    starts = range(0, len(source), batch_size)
    keys = ((0, np.arange(at, min(at + batch_size, len(source)))) for at in starts)
    yield from decoded_batches(EvalSamples(source, transform), keys, workers, timeout_s, pin_memory=pin_memory)
