"""Cue-conflict pictures, the shape of one category with the texture of another, and what a network decides on them.

Geirhos et al. (ICLR 2019) as pure functions of logits. Letters: N images, C = 1000 classes of ImageNet-1K, 16
categories in alphabetical order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from illama.data.imagenet import categories16
from illama.data.sources.folder import FolderSource
from illama.data.sources.walk import walk
from illama.errors import UserError
from illama.registry import closest

FULL_SET = 1280
_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


class CueConflictSource(FolderSource):
    """Cue-conflict pictures. `classes` are the 16 categories, `labels` the shapes.

    Attributes:
        textures: Category of each picture's texture, (n,) int64; where it is the shape's there is no conflict.
    """

    def __init__(self, files: list[str], shapes: np.ndarray, textures: np.ndarray, in_chans: int, where: Path) -> None:
        same = int((shapes == textures).sum())
        description = (
            f"cue-conflict pictures in {where}: {len(files)} of {FULL_SET:,} images, {same} without a conflict"
        )
        super().__init__(str(where), files, shapes, tuple(categories16()), in_chans, description)
        self.textures = textures


def open_cue_conflict(path: Path, in_chans: int = 3) -> CueConflictSource:
    """Open a folder of cue-conflict pictures; some of the categories and pictures will do.

    Args:
        path: Folder with a sub-folder for each shape category.
        in_chans: 1 or 3.

    Raises:
        UserError: No such folder, no picture in it, a category that is none of the 16, a file named otherwise, or a
            picture in another shape's folder.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give one with a sub-folder for each shape category (cat, dog, ...)")
    found = walk(path)
    loose = [file for file in found.pictures if "/" not in file]
    if loose:
        raise UserError(f"{path / loose[0]} lies outside of a shape category's folder ({len(loose)} such files)")
    files = sorted(path / file for file in found.pictures)
    numbers = {category: number for number, category in enumerate(categories16())}
    unknown = next((folder for folder in found.folders if folder not in numbers), None)
    if unknown is not None:
        name = unknown.rpartition("/")[2]
        raise UserError(f"folder {path / unknown} is named like none of the 16 categories; {closest(name, numbers)}")
    if not files:
        raise UserError(f"{path} has no cue-conflict pictures; they lie in folders such as cat/cat10-elephant3.png")
    cues = [shape_and_texture(file) for file in files]
    shapes, textures = (
        np.array([numbers[name] for name in column], dtype=np.int64) for column in zip(*cues, strict=True)
    )
    return CueConflictSource([str(file.relative_to(path)) for file in files], shapes, textures, in_chans, path)


def shape_and_texture(file: Path) -> tuple[str, str]:
    """The two categories in a picture's name.

    Raises:
        UserError: The name is of another form, has an unknown category, or stands in another shape's folder.
    """
    match = _NAME.fullmatch(file.stem)
    if match is None:
        raise UserError(f"{file} is not named like a cue-conflict picture, SHAPEn-TEXTUREm (cat10-elephant3.png)")
    for category in match.groups():
        if category not in categories16():
            raise UserError(f"{file} names the category {category!r}; {closest(category, categories16())}")
    if match[1] != file.parent.name:
        raise UserError(f"{file} has the shape {match[1]!r} by its name, but lies in the folder {file.parent.name!r}")
    return match[1], match[2]


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
