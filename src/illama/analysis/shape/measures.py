"""Shape or texture: what a network decides on pictures that show one category in the texture of another.

Geirhos et al. (ICLR 2019) as pure functions of logits. Letters: N images, C = 1000 classes of ImageNet-1K, 16
categories in alphabetical order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from illama.data.imagenet import categories16
from illama.errors import UserError


@dataclass(frozen=True)
class ShapeBias:
    """Decisions on the images with a conflict, counted by the category of the shape.

    Attributes:
        categories: Names.
        shape: Decisions for the shape, one number per category.
        texture: Decisions for the texture.
        other: Decisions for one of the 14 other categories; they count neither way.
        without_conflict: Images whose shape and texture agree; they are left out.
    """

    categories: tuple[str, ...]
    shape: tuple[int, ...]
    texture: tuple[int, ...]
    other: tuple[int, ...]
    without_conflict: int

    @property
    def images(self) -> int:
        """Images with a conflict."""
        return sum(self.shape) + sum(self.texture) + sum(self.other)

    @property
    def decided(self) -> int:
        """Those of them on which the decision was the shape or the texture."""
        return sum(self.shape) + sum(self.texture)

    @property
    def bias(self) -> float:
        """Share of shape decisions among shape and texture decisions, 0 to 1, over all images together."""
        return sum(self.shape) / self.decided

    @property
    def by_category(self) -> tuple[float | None, ...]:
        """The same for each shape category; None where no image was decided either way."""
        pairs = zip(self.shape, self.texture, strict=True)
        return tuple(shape / (shape + texture) if shape + texture else None for shape, texture in pairs)

    @property
    def shape_accuracy(self) -> float:
        """Share of all images with a conflict whose shape was recognised, 0 to 1."""
        return sum(self.shape) / self.images

    @property
    def texture_accuracy(self) -> float:
        """Share of all images with a conflict whose texture was recognised, 0 to 1."""
        return sum(self.texture) / self.images


def category_probabilities(logits: Tensor) -> Tensor:
    """Mean probability of each category's classes, (N, 16) in double precision, of logits (N, C).

    A mean, not a sum: 109 classes are dogs and one is a knife.
    """
    probabilities = torch.softmax(logits.double(), dim=1)
    return torch.stack([probabilities[:, list(own)].mean(dim=1) for own in categories16().values()], dim=1)


def decisions(logits: Tensor) -> Tensor:
    """The category with the largest mean probability, (N,) int64; of equal ones the first."""
    return category_probabilities(logits).argmax(dim=1)


def shape_bias(decided: Tensor, shapes: Tensor, textures: Tensor) -> ShapeBias:
    """Count decisions.

    Args:
        decided: Category that the network chose, (N,) int64.
        shapes: Category of each image's shape, (N,) int64.
        textures: Category of each image's texture, (N,) int64.

    Raises:
        UserError: No image has a conflict, or none was decided for its shape or its texture.
    """
    conflict = shapes != textures
    if not conflict.any():
        raise UserError(f"none of the {len(shapes)} images shows one category in the texture of another")
    decided, shapes, textures = decided[conflict], shapes[conflict], textures[conflict]
    for_shape, for_texture = decided == shapes, decided == textures
    if not (for_shape | for_texture).any():
        raise UserError(
            f"on none of the {len(shapes)} images with a conflict the network chose the shape or the texture, so there "
            "is no shape bias; train it further, or give the whole set"
        )

    def counts(chosen: Tensor) -> tuple[int, ...]:
        return tuple(torch.bincount(shapes[chosen], minlength=len(categories16())).tolist())

    return ShapeBias(
        categories=tuple(categories16()),
        shape=counts(for_shape),
        texture=counts(for_texture),
        other=counts(~(for_shape | for_texture)),
        without_conflict=int((~conflict).sum()),
    )
