"""What a sample's target is, and how it moves with its image: all that loaders have to know of a task.

Source.target -> per_image (worker) -> shared memory -> batched (device) -> mixing -> Batch.targets -> Task.loss
                 fitted, evaluated (sets in memory)
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from illama.data.augment.batched import BatchedAugment, Mixing
from illama.data.augment.per_image import fit, train_transform
from illama.data.eval_transform import EvalTransform, to_tensor
from illama.data.rng import Draws

if TYPE_CHECKING:
    from illama.data.source import Source
    from illama.recipes.schema import Recipe

# An image and its target -> pixels (C, H, W) uint8 and the target beside them. The image is a `Picture` in `per_image`,
# else Pillow's.
SampleTransform = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def demand_target(target: Tensor, shape: Sequence[int], dtype: torch.dtype, source: Source, i: int) -> None:
    """The target of image `i` is what its task says: one of another shape would be spread out without a word.

    Raises:
        ValueError: It is not.
    """
    if tuple(target.shape) != tuple(shape) or target.dtype != dtype:
        given = f"{tuple(target.shape)} of {target.dtype}"
        raise ValueError(f"the target of {source.location(i)} is {given}, its task's are {tuple(shape)} of {dtype}")


class BatchTransform(Protocol):
    """Augmentation of whole batches on their device."""

    def draw(self, draws: Draws, height: int, width: int) -> Any:
        """What happens to images of height x width, decided on the CPU: nested containers of tensors."""

    def apply(self, images: Tensor, targets: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
        """Augment (B, C, H, W) uint8 and their targets by a plan that lies on their device."""


class Targets(ABC):
    """The targets of a task, from the source to the loss. It holds no data: workers get a copy.

    Attributes:
        dtype: That of a target.
    """

    dtype: torch.dtype = torch.int64

    @abstractmethod
    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        """Shape of the target beside an image of this (height, width)."""

    @abstractmethod
    def fitted(self, size: tuple[int, int]) -> SampleTransform:
        """Images that training keeps in memory, brought to this (height, width)."""

    @abstractmethod
    def evaluated(self, transform: EvalTransform) -> SampleTransform:
        """Images as evaluation looks at them."""

    @abstractmethod
    def per_image(self, recipe: Recipe, crop: str, *, on_device: bool) -> SampleTransform:
        """What training does to a picture in a worker, drawing from the global generators.

        Args:
            recipe: Its `augment` section decides.
            crop: "resized", "pad" or "none".
            on_device: Leave all after the crop to `batched`.
        """

    @abstractmethod
    def batched(self, recipe: Recipe, crop: str) -> BatchTransform:
        """What training does to whole batches, for a `crop` of "pad" or "none".

        Raises:
            UserError: The recipe asks for what is done to single images only.
        """

    def mixing(self, recipe: Recipe) -> Mixing | None:
        """How images of a batch are mixed; None where they are not."""
        return None


@dataclass(frozen=True)
class _BesideLabel:
    """A transform of images alone."""

    transform: Callable[[Any], Tensor]

    def __call__(self, image: Any, label: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform(image), label


@dataclass(frozen=True)
class _BatchBesideLabels:
    """An augmentation of images alone."""

    augment: BatchedAugment

    def draw(self, draws: Draws, height: int, width: int) -> Any:
        return self.augment.draw(draws, height, width)

    def apply(self, images: Tensor, labels: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
        return self.augment.apply(images, plan), labels


@dataclass(frozen=True)
class _Fit:
    """To one size, not augmented."""

    size: tuple[int, int]

    def __call__(self, image: Any) -> Tensor:
        return to_tensor(fit(image, self.size))


class ClassLabels(Targets):
    """One class for each image, 0-d int64, which no augmentation but mixing changes."""

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return ()

    def fitted(self, size: tuple[int, int]) -> SampleTransform:
        return _BesideLabel(_Fit(size))

    def evaluated(self, transform: EvalTransform) -> SampleTransform:
        return _BesideLabel(transform)

    def per_image(self, recipe: Recipe, crop: str, *, on_device: bool) -> SampleTransform:
        return _BesideLabel(train_transform(recipe, crop, on_device=on_device))

    def batched(self, recipe: Recipe, crop: str) -> BatchTransform:
        return _BatchBesideLabels(BatchedAugment.of(recipe, crop))

    def mixing(self, recipe: Recipe) -> Mixing | None:
        return Mixing.of(recipe.augment, recipe.model.num_classes)


CLASS_LABELS = ClassLabels()
