"""Cue-conflict pictures: the shape of one category with the texture of another.

Geirhos et al., "ImageNet-trained CNNs are biased towards texture" (ICLR 2019): 1,280 pictures in a folder per shape
category, named `shapeN-textureM` with running numbers N and M (cat10-elephant3.png).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

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
