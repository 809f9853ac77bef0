"""Shape or texture (Table 8, Fig. 8): a network's decisions on cue-conflict pictures.

Such a picture shows the shape of one category with the texture of another (Geirhos et al., ICLR 2019). Letters: N
images, C = 1000 classes of ImageNet-1K, 16 categories in alphabetical order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from illama.analysis.imagenet_answers import answers, not_imagenet
from illama.analysis.registry import ShapeOptions
from illama.analysis.report import GRID, AnalysisResult, Measure, canvas
from illama.data.imagenet import categories16
from illama.data.sources.folder import FolderSource
from illama.data.sources.walk import walk
from illama.errors import UserError
from illama.evaluation.statistics import wilson
from illama.evaluation.subject import Subject
from illama.registry import closest
from illama.report import Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from illama.system.files import at_home

PUBLISHED = "41.45 % (iLLaMA-B, ImageNet-1K)"
MARKERS = "osD^vP"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
HEADER = ("shape category", "shape decisions", "texture decisions", "other decisions", "shape bias")
ABOUT = (
    "Each picture shows the shape of one category in the texture of another ([Geirhos et al., "
    "2019](https://arxiv.org/abs/1811.12231)). The network's 1000 probabilities are averaged within each of 16 "
    "categories, and the largest average is its decision. **Shape bias** is the share of shape decisions among those "
    "for the shape or the texture; decisions for a third category count neither way, nor do pictures without "
    "a conflict."
)
FULL_SET = 1280
_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")


def why_not(subject: Subject, options: ShapeOptions) -> str | None:
    """Why this cannot be done for this network, in one line; None if it can."""
    if options.cue_conflict is None:
        return "no cue-conflict pictures are given; add --cue-conflict FOLDER (in a report: shape.cue_conflict=FOLDER)"
    return not_imagenet(subject)


def shape(subject: Subject, options: ShapeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Shape bias of a network with ImageNet-1K's classes; its own images are not looked at.

    Raises:
        UserError: The folder or the network does not fit, or no decision was for a shape or a texture.
    """
    problem = why_not(subject, options)
    if problem is not None or options.cue_conflict is None:
        raise UserError(f"shape bias cannot be measured: {problem}")
    source = open_cue_conflict(at_home(options.cue_conflict), subject.meta.config.in_chans)
    imagenet = answers(subject, source)
    bias = shape_bias(
        decisions(imagenet.logits), imagenet.labels, torch.from_numpy(source.textures)[imagenet.positions]
    )
    return result(bias, source, imagenet.skipped)


def result(bias: ShapeBias, source: CueConflictSource, skipped: int) -> AnalysisResult:
    """Numbers, table and figure of counted decisions."""
    low, high = wilson(sum(bias.shape), bias.decided)
    counts = f"{sum(bias.shape)} shape and {sum(bias.texture)} texture decisions"
    within = f"95 % interval {100 * low:.1f} to {100 * high:.1f}"
    summary = (
        Measure("shape bias", f"{100 * bias.bias:.2f} % ({counts}; {within})", PUBLISHED),
        Measure("cue conflict: shape recognised", f"{100 * bias.shape_accuracy:.1f} % of {bias.images} images"),
        Measure("cue conflict: texture recognised", f"{100 * bias.texture_accuracy:.1f} % of {bias.images} images"),
    )
    left_out = f"{bias.without_conflict} images without a conflict are left out; {skipped} could not be read."
    table = Table(HEADER, (*map(_cells, rows(bias)), _cells(_total(bias))), f"Decisions by category. {left_out}")
    picture = Figure(
        "shape_bias",
        draw({"this network": bias}),
        f"Shape bias of 16 categories, on average {100 * bias.bias:.1f} %",
        "The further left a dot, the more often the shape decides for pictures of that shape category; the dashed line "
        "is the share over all pictures. A category without a dot had no decision for its shape or the texture.",
    )
    return AnalysisResult(
        "shape",
        summary,
        Section("Shape or texture", (Text(ABOUT), Text(f"Images: {source.description}."), picture, table)),
        {
            "data": source.description,
            "shape_bias": bias.bias,
            "shape_bias_interval": [low, high],
            "shape_accuracy": bias.shape_accuracy,
            "texture_accuracy": bias.texture_accuracy,
            "images_with_conflict": bias.images,
            "images_without_conflict": bias.without_conflict,
            "skipped": skipped,
            "by_category": {
                name: {"shape": by_shape, "texture": by_texture, "other": other, "shape_bias": share}
                for name, by_shape, by_texture, other, share in rows(bias)
            },
        },
        {"shape_bias.csv": csv_text(HEADER, (*rows(bias), _total(bias)))},
    )


def rows(bias: ShapeBias) -> list[tuple[str, int, int, int, float | None]]:
    """One row per shape category under `HEADER`; the bias is None where no decision was for shape or texture."""
    return list(zip(bias.categories, bias.shape, bias.texture, bias.other, bias.by_category, strict=True))


def _total(bias: ShapeBias) -> tuple[str, int, int, int, float]:
    return "all", sum(bias.shape), sum(bias.texture), sum(bias.other), bias.bias


def _cells(row: tuple[str, int, int, int, float | None]) -> tuple[str, ...]:
    name, *counts, share = row
    return (name, *map(str, counts), "none decided" if share is None else f"{100 * share:.1f} %")


def draw(networks: Mapping[str, ShapeBias]) -> bytes:
    """The paper's Fig. 8 as SVG: a dot per category and network, a dashed line at each network's average.

    Args:
        networks: Name -> its decisions.

    Raises:
        ValueError: There are more networks than can be told apart.
    """
    if not 1 <= len(networks) <= len(MARKERS):
        raise ValueError(f"the figure shows 1 to {len(MARKERS)} networks; got {len(networks)}")
    categories = next(iter(networks.values())).categories
    figure = canvas(7.2, 6.0)
    axes = figure.subplots()
    for number, (name, bias) in enumerate(networks.items()):
        colour, marker = COLOURS[number], MARKERS[number]
        shift = (number - (len(networks) - 1) / 2) * 0.6 / len(networks)  # equal shares would hide each other
        dots = [(share, place + shift) for place, share in enumerate(bias.by_category) if share is not None]
        label = f"{name}, average {bias.bias:.2f}"
        axes.axvline(bias.bias, color=colour, linestyle="--", linewidth=1.4)
        shares, places = zip(*dots, strict=True)
        axes.scatter(shares, places, s=62, color=colour, marker=marker, label=label, zorder=3, clip_on=False)
    axes.set_yticks(range(len(categories)), categories)
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.set_xlim(1, 0)
    axes.set_xlabel("fraction of shape decisions")
    axes.set_ylabel("category of the shape")
    upper = axes.secondary_xaxis("top", functions=(_complement, _complement))
    upper.set_xlabel("fraction of texture decisions")
    axes.grid(axis="both", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=min(3, len(networks)), frameon=False)
    return svg_bytes(figure)


def _complement(share: Any) -> Any:
    return 1 - share


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
        super().__init__(
            root=str(where),
            paths=files,
            labels=shapes,
            classes=tuple(categories16()),
            in_chans=in_chans,
            description=description,
        )
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
    files_below = walk(path)
    loose = [file for file in files_below.pictures if "/" not in file]
    if loose:
        raise UserError(f"{path / loose[0]} lies outside of a shape category's folder ({len(loose)} such files)")
    files = sorted(path / file for file in files_below.pictures)
    numbers = {category: number for number, category in enumerate(categories16())}
    unknown = next((folder for folder in files_below.folders if folder not in numbers), None)
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
