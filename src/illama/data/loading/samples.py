"""Samples by (epoch, position): what decoding processes are sent, and what they make of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from illama.data.decode.images import BrokenImage
from illama.data.eval_transform import EvalTransform
from illama.data.rng import Purpose, reseed
from illama.data.source import Source
from illama.data.targets import CLASS_LABELS, SampleTransform, Targets, demand_target
from illama.errors import UserError
from illama.recipes import Recipe

# So many in a row, more than a class of ImageNet has, are no damaged files: the data set is gone. Looking at all of a
# large one would take hours to say so.
BROKEN_IN_A_ROW = 10_000


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
