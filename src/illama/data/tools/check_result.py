"""What is to be known of one image before it is trained on, and of many as rows of an array."""

from __future__ import annotations

import enum
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from illama.data.decode.images import PILLOW_IN_OUR_HANDS, BrokenImage, read_image
from illama.data.layout import Layout
from illama.data.source import Source
from illama.data.sources.formats import ending_of, fits, readable_formats


class Issue(enum.IntFlag):
    """What can be said of an image; several may hold."""

    BROKEN = 1
    TINY = 2
    WRONG_ENDING = 4
    GREY = 8
    CMYK = 16
    DEEP = 32
    TRANSPARENT = 64
    TURNED = 128
    ANIMATED = 256


# 38 bytes an image: half a gigabyte for the 14 million of ImageNet-21K. The pixels' digest has 128 bits, that of the
# file 64: it is compared only where the pixels are the same.
ROW = np.dtype(
    [
        ("width", np.uint32),
        ("height", np.uint32),
        ("bytes", np.uint32),
        ("file", np.uint64),
        ("pixels", np.uint64, 2),
        ("issues", np.uint16),
    ]
)
_MODES = {"1": Issue.GREY, "L": Issue.GREY, "LA": Issue.GREY, "CMYK": Issue.CMYK}
_ORIENTATION = 0x0112
_ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP"})


def inspect(source: Source, start: int, stop: int, min_side: int) -> tuple[np.ndarray, dict[int, str]]:
    """Read some images of a source completely.

    Args:
        source: Images with three channels.
        start, stop: Positions.
        min_side: A shorter side of fewer pixels is tiny.

    Returns:
        A row for each image, (stop - start,) of `ROW`; why it is broken, or which format a wrongly named file has, by
        position in the source.
    """
    rows = np.zeros(stop - start, dtype=ROW)
    details = {}
    for i in range(start, stop):
        row = rows[i - start]
        try:
            content = source.encoded(i)
            image = source.read(i) if content is None else read_image(content, max_pixels=source.max_pixels)
        except BrokenImage as broken:
            row["issues"] = Issue.BROKEN
            details[i] = broken.why
            continue
        row["width"], row["height"] = image.size
        row["pixels"] = _digest(16, str(image.size).encode(), image.tobytes())
        if min(image.size) < min_side:
            row["issues"] |= Issue.TINY
        if content is not None:
            row["bytes"] = min(len(content), 2**32 - 1)
            row["file"] = _digest(8, content)[0]
            issues, form = _header(content)
            row["issues"] |= issues
            if not fits(form, ending_of(source.location(i))):
                row["issues"] |= Issue.WRONG_ENDING
                details[i] = form
    return rows, details


def _digest(size: int, *contents: bytes) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=size)
    for content in contents:
        digest.update(content)
    return np.frombuffer(digest.digest(), dtype=np.uint64)


def _header(content: bytes) -> tuple[Issue, str]:
    """What the file's header says, and its format; of a file that can be read."""
    with PILLOW_IN_OUR_HANDS, Image.open(io.BytesIO(content), formats=readable_formats()) as image:
        issues = _MODES.get(image.mode, Issue(0))
        if image.mode[0] in "IF":
            issues |= Issue.DEEP
        if image.has_transparency_data:
            issues |= Issue.TRANSPARENT
        if image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
            issues |= Issue.ANIMATED
        try:
            if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
                issues |= Issue.TURNED
        except Exception:  # unreadable EXIF; reading the image ignores it too
            pass
        return issues, image.format or ""


# Kinds that are told for information only: training reads them all as RGB (or grey), upright, on white.
INFORMATION = (Issue.GREY, Issue.CMYK, Issue.DEEP, Issue.TRANSPARENT, Issue.TURNED, Issue.ANIMATED)


@dataclass(frozen=True)
class CheckedSplit:
    """A split and what was found in it.

    Attributes:
        name: "train", ...
        source: Its images, classes in the numbering of the first split.
        rows: A row for each image, (n,) of `ROW`.
        details: Why an image is broken, or which format a wrongly named one has, by position.
    """

    name: str
    source: Source
    rows: np.ndarray
    details: dict[int, str]

    @cached_property
    def class_counts(self) -> np.ndarray:
        """Images of each class, (classes,) int64."""
        return np.bincount(self.source.labels, minlength=len(self.source.classes))

    @property
    def missing_classes(self) -> list[str]:
        """Classes without an image here."""
        return [self.source.classes[c] for c in np.flatnonzero(self.class_counts == 0)]


@dataclass(frozen=True)
class Place:
    """One image.

    Attributes:
        split: Name of its split.
        where: Its path, or file and row.
        label: Name of its class.
        detail: Why it is broken, its true format, or its size.
    """

    split: str
    where: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Duplicates:
    """Images with the same pixels.

    Attributes:
        images: (position of the split, position in it) of each.
        same_files: Whether the files are the same byte by byte, too.
        across_splits: Whether they lie in more than one split: what is evaluated on was trained on.
        several_labels: Whether they are in more than one class: one of the labels is wrong.
    """

    images: tuple[tuple[int, int], ...]
    same_files: bool
    across_splits: bool
    several_labels: bool


@dataclass(frozen=True)
class CheckResult:
    """All that was found.

    Attributes:
        layout: What was understood.
        splits: In the order in which they were opened; the first one numbers the classes.
        min_side: What was asked for.
        seconds: What reading them took.
        unusable: Splits that training does not open by itself and that cannot be opened, and why.
        decoded: Whether the images were read, or their names only.
    """

    layout: Layout
    splits: tuple[CheckedSplit, ...]
    min_side: int
    seconds: float
    unusable: dict[str, str] = field(default_factory=dict)
    decoded: bool = True

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.splits[0].source.classes

    @property
    def images(self) -> int:
        """How many there are, broken ones included."""
        return sum(len(split.rows) for split in self.splits)

    def count(self, issue: Issue) -> int:
        """How many images this holds for."""
        return sum(int((split.rows["issues"] & issue > 0).sum()) for split in self.splits)

    def places(self, issue: Issue) -> Iterator[Place]:
        """The images that this holds for, in order."""
        for number, split in enumerate(self.splits):
            for i in np.flatnonzero(split.rows["issues"] & issue):
                yield self.place(number, int(i), issue)

    def place(self, split: int, i: int, issue: Issue | None = None) -> Place:
        """An image by its position; `issue` decides what the detail is about."""
        checked, detail = self.splits[split], ""
        if issue in (Issue.BROKEN, Issue.WRONG_ENDING):
            detail = checked.details[i]
        elif issue == Issue.TINY:
            detail = f"{checked.rows['width'][i]} x {checked.rows['height'][i]}"
        source = checked.source
        return Place(checked.name, source.location(i), source.classes[source.labels[i]], detail)

    def spread(self, column: str) -> tuple[float, float, float] | None:
        """Smallest, median and largest "width", "height" or "bytes" of the readable images; None where not known."""
        values = np.concatenate([split.rows[column][split.rows["width"] > 0] for split in self.splits])
        return (float(values.min()), float(np.median(values)), float(values.max())) if values.any() else None

    @cached_property
    def duplicates(self) -> list[Duplicates]:
        """Groups of images with the same pixels, in the order of their first images."""
        pixels = np.concatenate([split.rows["pixels"] for split in self.splits])
        readable = np.concatenate([split.rows["width"] > 0 for split in self.splits])
        starts = np.cumsum([0, *(len(split.rows) for split in self.splits)])
        groups = []
        for group in _same(pixels, np.flatnonzero(readable)):
            numbers = np.searchsorted(starts, group, side="right") - 1
            images = [(int(n), int(at - starts[n])) for n, at in zip(numbers, group, strict=True)]
            files = {int(self.splits[n].rows["file"][i]) for n, i in images}
            labels = {int(self.splits[n].source.labels[i]) for n, i in images}
            same_files = len(files) == 1 and files != {0}
            groups.append(Duplicates(tuple(images), same_files, len(set(numbers.tolist())) > 1, len(labels) > 1))
        return groups

    def to_dict(self) -> dict[str, Any]:
        """Plain values, every path included."""
        splits = {
            split.name: {
                "description": split.source.description,
                "images": len(split.rows),
                "bytes": int(split.rows["bytes"].sum(dtype=np.int64)),
                "class_counts": dict(zip(self.classes, split.class_counts.tolist(), strict=True)),
                "missing_classes": split.missing_classes,
            }
            for split in self.splits
        }
        spreads = {column: self.spread(column) for column in ("width", "height", "bytes")}
        sizes = {
            column: spread and dict(zip(("min", "median", "max"), spread, strict=True))
            for column, spread in spreads.items()
        }
        return {
            "layout": self.layout.explain(self.classes),
            "passed_over": self.layout.passed_over.to_dict(),
            "unusable": self.unusable,
            "images": self.images,
            "classes": list(self.classes),
            "splits": splits,
            **sizes,
            "min_side": self.min_side,
            "broken": self._listed(Issue.BROKEN, "why"),
            "tiny": self._listed(Issue.TINY, "size"),
            "wrong_ending": self._listed(Issue.WRONG_ENDING, "format"),
            "duplicates": [
                {
                    "images": [_plain(self.place(*image)) for image in group.images],
                    "same_files": group.same_files,
                    "across_splits": group.across_splits,
                    "several_labels": group.several_labels,
                }
                for group in self.duplicates
            ],
            "information": {
                str(kind.name).lower(): [_plain(place) for place in self.places(kind)] for kind in INFORMATION
            },
            "seconds": self.seconds,
        }

    def _listed(self, issue: Issue, key: str) -> list[dict[str, str]]:
        return [_plain(place) | {key: place.detail} for place in self.places(issue)]


def _plain(place: Place) -> dict[str, str]:
    return {"split": place.split, "where": place.where, "class": place.label}


def _same(digests: np.ndarray, chosen: np.ndarray) -> list[np.ndarray]:
    """Sorted positions with equal digests, (n, 2) uint64, among the chosen ones; groups by their first position."""
    chosen = chosen[np.lexsort((chosen, digests[chosen, 1], digests[chosen, 0]))]
    ordered = digests[chosen]
    borders = np.flatnonzero((ordered[1:] != ordered[:-1]).any(axis=1)) + 1
    starts = np.concatenate(([0], borders))
    stops = np.concatenate((borders, [len(chosen)]))
    several = np.flatnonzero(stops - starts > 1)
    return sorted((chosen[starts[g] : stops[g]] for g in several), key=lambda group: int(group[0]))
