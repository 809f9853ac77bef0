"""Reads every image of a data set once, in processes, and tells what is wrong before hours of training are spent.

First what is to be known of one image, and of many as rows of an array; then the processes.
"""

from __future__ import annotations

import enum
import hashlib
import io
import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from illama.console.progress import WorkProgress
from illama.data.decode.images import PILLOW_IN_OUR_HANDS, BrokenImage, read_image
from illama.data.layout import WHOLE, Layout, look
from illama.data.source import Source
from illama.data.sources.formats import ending_of, fits, readable_formats
from illama.errors import UserError
from illama.system.processes import cpu_count, end_with_parent

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

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
_ORIENTATION = 0x0112
_ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP"})
CRASHED = "the decoder crashed or ran out of memory"
_CHUNK = 64
_IN_FLIGHT = 4  # chunks for each process: none waits, and memory stays bounded
Inspected = tuple[np.ndarray, dict[int, str]]
_sources: list[Source] = []  # of a process of the pool, as is the next
_min_side = 0


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


_MODES = {"1": Issue.GREY, "L": Issue.GREY, "LA": Issue.GREY, "CMYK": Issue.CMYK}


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
class ImagePlace:
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

    def places(self, issue: Issue) -> Iterator[ImagePlace]:
        """The images that this holds for, in order."""
        for number, split in enumerate(self.splits):
            for i in np.flatnonzero(split.rows["issues"] & issue):
                yield self.place(number, int(i), issue)

    def place(self, split: int, i: int, issue: Issue | None = None) -> ImagePlace:
        """An image by its position; `issue` decides what the detail is about."""
        checked, detail = self.splits[split], ""
        if issue in (Issue.BROKEN, Issue.WRONG_ENDING):
            detail = checked.details[i]
        elif issue == Issue.TINY:
            detail = f"{checked.rows['width'][i]} x {checked.rows['height'][i]}"
        source = checked.source
        return ImagePlace(checked.name, source.location(i), source.classes[source.labels[i]], detail)

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


def _plain(place: ImagePlace) -> dict[str, str]:
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


@dataclass(frozen=True)
class _Chunk:
    """Images `start` to `stop` of a split."""

    split: int
    start: int
    stop: int


def check_data(data: DataConfig, *, min_side: int = 32, workers: int | None = None, decode: bool = True) -> CheckResult:
    """Read all images of all splits, with progress on stderr.

    Memory grows by about 40 bytes an image, beyond what the sources themselves need.

    Args:
        data: Which data set; what it says of splits and of numbers of images is not looked at.
        min_side: An image whose shorter side has fewer pixels is tiny.
        workers: Processes; as many as there are CPUs by default.
        decode: Whether images are read at all; without, only the layout is looked at.

    Raises:
        UserError: The data set cannot be opened; the message says why.
    """
    begun = time.perf_counter()
    layout, names, sources, unusable = _open(data)
    splits = [
        CheckedSplit(name, source, np.zeros(len(source), dtype=ROW), {})
        for name, source in zip(names, sources, strict=True)
    ]
    if decode:
        for source in sources:
            source.prepare()
        chunks = [
            _Chunk(number, start, min(start + _CHUNK, len(source)))
            for number, source in enumerate(sources)
            for start in range(0, len(source), _CHUNK)
        ]
        with (
            WorkProgress("checking images", sum(map(len, sources))) as progress,
            closing(_inspected(sources, chunks, min_side, workers or cpu_count())) as results,
        ):
            for chunk, (rows, details) in results:
                splits[chunk.split].rows[chunk.start : chunk.stop] = rows
                splits[chunk.split].details.update(details)
                progress.advance(chunk.stop - chunk.start)
    return CheckResult(layout, tuple(splits), min_side, time.perf_counter() - begun, unusable, decoded=decode)


def _open(data: DataConfig) -> tuple[Layout, list[str], list[Source], dict[str, str]]:
    """Every split, its classes in the numbering of the first one, and why the others cannot be opened.

    Raises:
        UserError: One that training or its evaluation would open cannot be.
    """
    layout = look(data)
    used = layout.used_splits()
    names: list[str] = []
    sources: list[Source] = []
    unusable: dict[str, str] = {}
    for name in layout.splits or (None,):
        try:
            source = layout.read(name, 3, sources[0].classes if sources else None)
        except UserError as error:
            if name is None or name in used or not sources:
                raise
            unusable[name] = str(error)
            continue
        source.max_pixels = data.max_image_pixels
        names.append(name or WHOLE)
        sources.append(source)
    return layout, names, sources, unusable


def _inspected(
    sources: list[Source], chunks: list[_Chunk], min_side: int, workers: int
) -> Generator[tuple[_Chunk, Inspected], None, None]:
    """Results as they come; an image that ends the process which reads it is found and called broken."""
    waiting = deque(chunks)
    running: dict[Future[Inspected], _Chunk] = {}
    while waiting:
        try:
            with _pool(sources, min_side, min(workers, len(chunks))) as pool:
                while waiting or running:
                    if waiting and len(running) < _IN_FLIGHT * workers:
                        running[pool.submit(_inspect, waiting[0])] = waiting[0]
                        waiting.popleft()
                        continue
                    for job in wait(running, return_when=FIRST_COMPLETED).done:
                        result = job.result()
                        yield running.pop(job), result
        except BrokenProcessPool:
            for chunk in running.values():
                yield from _alone(sources, min_side, chunk)
            running.clear()


def _alone(sources: list[Source], min_side: int, chunk: _Chunk) -> Iterator[tuple[_Chunk, Inspected]]:
    """A chunk by a process of its own, in halves again and again until the image is found that ends it."""
    try:
        with _pool(sources, min_side, 1) as pool:
            result = pool.submit(_inspect, chunk).result()
    except BrokenProcessPool:
        middle = (chunk.start + chunk.stop) // 2
        if middle == chunk.start:
            row = np.zeros(1, dtype=ROW)
            row["issues"] = Issue.BROKEN
            yield chunk, (row, {chunk.start: CRASHED})
        else:
            yield from _alone(sources, min_side, _Chunk(chunk.split, chunk.start, middle))
            yield from _alone(sources, min_side, _Chunk(chunk.split, middle, chunk.stop))
        return
    yield chunk, result


@contextmanager
def _pool(sources: list[Source], min_side: int, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that inspect images."""
    # forked processes share the lists of millions of files
    way = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context(way), initializer=_begin, initargs=(sources, min_side)
    )
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(sources: list[Source], min_side: int) -> None:
    """Make ready a process of the pool."""
    global _sources, _min_side
    _sources, _min_side = sources, min_side
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that the user sees ends the others
    warnings.simplefilter("ignore")  # Pillow's, of odd files; what matters is in the result
    end_with_parent()


def _inspect(chunk: _Chunk) -> Inspected:
    return inspect(_sources[chunk.split], chunk.start, chunk.stop, _min_side)
