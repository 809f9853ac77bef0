"""Which image goes into which shard: decided once, stored beside the shards, kept to by every later run.

The plan is what makes a stopped run continue exactly, also when a source file has vanished in the meantime.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from illama.console.json_text import parse_json
from illama.data.sources.folder import FolderLayout, FolderSource
from illama.data.sources.splits import is_training
from illama.errors import UserError

_FORMAT = 1
_STAT_THREADS = 16  # a network file system answers many questions at a time
_STAT_CHUNK = 1024
# timm's reader looks for .jpg; these endings name the same format.
_JPEG_ENDINGS = frozenset({".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True)
class PlannedSplit:
    """The files of a split in the order in which they are written.

    Attributes:
        name: "train", "val", ...
        folder: Where the paths begin, relative to the source: the split's folder, or "." where there are no splits.
        paths: Path of each file below `folder`, (n,).
        numbers: Class number, bytes and time of the last change (ns since 1970) of each, (n, 3) int64.
    """

    name: str
    folder: str
    paths: list[str]
    numbers: np.ndarray

    def in_source(self, path: str) -> str:
        """A path of this split as it is called from the source's folder."""
        return path if self.folder == "." else f"{self.folder}/{path}"

    @property
    def shuffled(self) -> bool:
        """Whether the seed decides the order."""
        return is_training(self.name)


@dataclass(frozen=True)
class ShardFile:
    """One shard of the plan: files `start` to `stop` of a split."""

    name: str
    split: PlannedSplit
    start: int
    stop: int

    @property
    def tar_bytes(self) -> int:
        """Size of the finished file, but for names longer than 100 bytes and the padding at its end."""
        sizes = self.split.numbers[self.start : self.stop, 1]
        blocks = 3 + -(-sizes // tarfile.BLOCKSIZE)  # two headers, and the class in a block of its own
        return int(blocks.sum()) * tarfile.BLOCKSIZE


@dataclass(frozen=True)
class ShardPlan:
    """All shards that will be.

    Attributes:
        images_per_shard: Images in each shard but the last one of a split.
        seed: Decides the order of the training images.
        classes: Class names in the order of their numbers.
        splits: The splits.
    """

    images_per_shard: int
    seed: int
    classes: tuple[str, ...]
    splits: tuple[PlannedSplit, ...]

    def shard_name(self, split: PlannedSplit, i: int) -> str:
        """The shard that holds file `i` of a split: train-000000.tar."""
        return f"{split.name}-{i // self.images_per_shard:06d}.tar"

    @cached_property
    def shards(self) -> list[ShardFile]:
        """The shards in order: train-000000.tar, train-000001.tar, ..., val-000000.tar, ..."""
        step = self.images_per_shard
        return [
            ShardFile(self.shard_name(split, start), split, start, min(start + step, len(split.paths)))
            for split in self.splits
            for start in range(0, len(split.paths), step)
        ]

    @cached_property
    def ambiguous(self) -> frozenset[str]:
        """Paths whose name without ending is that of another file of the split."""
        several: set[str] = set()
        for split in self.splits:
            stems = Counter(os.path.splitext(path)[0] for path in split.paths)
            if len(stems) < len(split.paths):
                several.update(path for path in split.paths if stems[os.path.splitext(path)[0]] > 1)
        return frozenset(several)

    def key(self, path: str) -> tuple[str, str]:
        """What a file is called in its shard: (key, ending).

        The key is the path without ending, so that a file is found by its name; readers take everything after the
        first dot for the ending, therefore further dots are written %2E (and % is %25). JPEG files end in jpg.
        """
        folder, _, name = path.rpartition("/")
        stem, ending = os.path.splitext(name)
        if path in self.ambiguous:
            stem = name
        stem = stem.replace("%", "%25").replace(".", "%2E")
        key = f"{folder}/{stem}" if folder else stem
        if key.startswith("__"):  # webdataset skips __such__ names
            key = "%5F" + key[1:]
        ending = ending.lower()
        return key, "jpg" if ending in _JPEG_ENDINGS else ending[1:]


def make_plan(layout: FolderLayout, images_per_shard: int, seed: int) -> ShardPlan:
    """Decide the order of an image folder's files: training images shuffled by the seed, the others by name.

    Raises:
        UserError: A split cannot be read.
    """
    classes: tuple[str, ...] | None = None
    splits = []
    for name in layout.splits or ("train",):
        files = layout.read(name if layout.splits else None, 3, classes)
        assert isinstance(files, FolderSource)
        classes = classes or files.classes
        folder = os.path.relpath(files.root, layout.listing.root).replace(os.sep, "/")
        order = np.array(sorted(range(len(files.paths)), key=files.paths.__getitem__), dtype=np.int64)
        if is_training(name):
            # numpy's frozen legacy generator: the same shards in every version
            order = order[np.random.RandomState(seed).permutation(len(order))]
        paths = [files.paths[i] for i in order]
        numbers = np.column_stack([files.labels[order], _sizes_and_changes(files.root, paths)])
        splits.append(PlannedSplit(name, folder, paths, numbers))
    return ShardPlan(images_per_shard, seed, classes or (), tuple(splits))


def _sizes_and_changes(root: str, paths: list[str]) -> np.ndarray:
    """Bytes and time of change (ns) of each file, (n, 2) int64."""

    def look(start: int) -> list[tuple[int, int]]:
        rows = []
        for path in paths[start : start + _STAT_CHUNK]:
            try:
                status = os.stat(f"{root}/{path}")
                rows.append((status.st_size, status.st_mtime_ns))
            except OSError:  # gone since it was listed, or a link to nowhere; reading it will say so
                rows.append((0, 0))
        return rows

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        chunks = list(pool.map(look, range(0, len(paths), _STAT_CHUNK)))
    return np.array([row for rows in chunks for row in rows], dtype=np.int64).reshape(-1, 2)


def write_plan(plan: ShardPlan, file: Path) -> None:
    """Write a plan as JSON lines: what it is, then [path, class number, bytes, change in ns] for each file.

    The bytes depend on the plan alone.
    """
    head = {
        "format": _FORMAT,
        "images_per_shard": plan.images_per_shard,
        "seed": plan.seed,
        "classes": plan.classes,
        "splits": [{"name": s.name, "folder": s.folder, "images": len(s.paths)} for s in plan.splits],
        "ambiguous": sorted(plan.ambiguous),
    }
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
        packed.write(json.dumps(head).encode() + b"\n")
        for split in plan.splits:
            rows = zip(split.paths, split.numbers, strict=True)
            packed.writelines(json.dumps([path, *numbers.tolist()]).encode() + b"\n" for path, numbers in rows)


def read_plan(file: Path) -> ShardPlan:
    """Read what `write_plan` wrote.

    Raises:
        UserError: The file is damaged, or of another version.
    """
    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            head: dict[str, Any] = parse_json(next(lines))
            if head["format"] != _FORMAT:
                raise UserError(
                    f"{file} is of format {head['format']}, this version writes {_FORMAT}; use a new folder"
                )
            splits = []
            for split in head["splits"]:
                rows = [parse_json(next(lines)) for _ in range(split["images"])]
                numbers = np.array([row[1:] for row in rows], dtype=np.int64).reshape(-1, 3)
                splits.append(PlannedSplit(split["name"], split["folder"], [row[0] for row in rows], numbers))
        return ShardPlan(head["images_per_shard"], head["seed"], tuple(head["classes"]), tuple(splits))
    except UserError:
        raise
    except (OSError, EOFError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise UserError(f"{file} is damaged ({error or 'cut off'}); delete the folder and shard again") from None


def changed_source(begun: ShardPlan, now: ShardPlan, finished: Mapping[str, Collection[str]]) -> str | None:
    """Why shards of one plan cannot be continued from another listing, in a few words; None when they can.

    Files that are gone do not count: they may be in finished shards, and those that are not will be missed by name.
    When a file was changed counts for those that are in finished shards; a restored one may be younger.

    Args:
        begun: The plan of the shards.
        now: A plan of the source as it is.
        finished: Name of each finished shard, and the files (paths in the source) that are not in it.
    """
    place = {split.in_source(path): (split, i) for split in begun.splits for i, path in enumerate(split.paths)}
    left_out = set().union(*finished.values())
    changed = []
    for split in now.splits:
        for path, (_, size, time) in zip(map(split.in_source, split.paths), split.numbers.tolist(), strict=True):
            if path not in place:
                return f"the source has {path}, which it did not have"
            old, i = place[path]
            is_written = begun.shard_name(old, i) in finished and path not in left_out
            if size != old.numbers[i, 1] or (is_written and time != old.numbers[i, 2]):
                changed.append(path)
    return f"{len(changed)} files changed since (size or time), among them {changed[0]}" if changed else None
