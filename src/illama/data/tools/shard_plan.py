"""Which image goes into which shard: decided once, stored beside the shards, kept to by every later run.

The plan is what makes a stopped run continue exactly, also when a source file has vanished in the meantime.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from illama.console.json_text import parse_json
from illama.data.sources.folder import FolderLayout, look_at_folder
from illama.data.sources.splits import is_training
from illama.errors import UserError
from illama.recipes.schema import DataConfig

_FORMAT = 1
_STAT_THREADS = 16  # a network file system answers many questions at a time
_STAT_CHUNK = 1024
_BLOCK = tarfile.BLOCKSIZE
# timm's reader looks for .jpg; these endings name the same format.
_JPEG_ENDINGS = frozenset({".jpeg", ".jpe", ".jfif"})


@dataclass(frozen=True)
class PlannedSplit:
    """The files of a split in the order in which they are written.

    Attributes:
        name: "train", "val", ...
        folder: Where the paths begin, relative to the source: the split's folder, or "." where there are no splits.
        paths: Path of each file below `folder`, (n,).
        labels: Class number of each, (n,) int64.
        sizes: Bytes of each, (n,) int64.
        changed: When each was last changed, in ns since 1970, (n,) int64.
    """

    name: str
    folder: str
    paths: list[str]
    labels: np.ndarray
    sizes: np.ndarray
    changed: np.ndarray

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
        sizes = self.split.sizes[self.start : self.stop]
        blocks = 3 + -(-sizes // _BLOCK)  # two headers, and the class in a block of its own
        return int(blocks.sum()) * _BLOCK


@dataclass(frozen=True)
class ShardPlan:
    """All shards that will be.

    Attributes:
        images_per_shard: Images in each shard but the last one of a split.
        seed: Decides the order of the training images.
        classes: Class names in the order of their numbers.
        splits: The splits.
        ambiguous: Paths whose name without ending is that of another file of the split.
    """

    images_per_shard: int
    seed: int
    classes: tuple[str, ...]
    splits: tuple[PlannedSplit, ...]
    ambiguous: frozenset[str]

    def shards(self) -> list[ShardFile]:
        """The shards in order: train-000000.tar, train-000001.tar, ..., val-000000.tar, ..."""
        return [
            ShardFile(f"{split.name}-{start // self.images_per_shard:06d}.tar", split, start, stop)
            for split in self.splits
            for start in range(0, len(split.paths), self.images_per_shard)
            for stop in (min(start + self.images_per_shard, len(split.paths)),)
        ]

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


def look_at_source(source: Path) -> FolderLayout:
    """The image folder that becomes shards.

    Raises:
        UserError: As `look_at_folder`.
    """
    return look_at_folder(DataConfig(name="folder", path=str(source)), None)


def make_plan(layout: FolderLayout, images_per_shard: int, seed: int) -> ShardPlan:
    """Decide the order of an image folder's files: training images shuffled by the seed, the others by name.

    Raises:
        UserError: A split cannot be read.
    """
    classes: tuple[str, ...] | None = None
    splits = []
    for name in layout.splits or ("train",):
        files = layout.read(name if layout.splits else None, 3, classes)
        classes = classes or files.classes
        root, paths = files.root, list(files.paths)
        folder = os.path.relpath(root, layout.found.root).replace(os.sep, "/")
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__), dtype=np.int64)
        if is_training(name):
            # numpy's frozen legacy generator: the same shards in every version
            order = order[np.random.RandomState(seed).permutation(len(order))]
        paths = [paths[i] for i in order]
        sizes, changed = _sizes_and_changes(root, paths)
        splits.append(PlannedSplit(name, folder, paths, files.labels[order], sizes, changed))
    ambiguous = frozenset(path for split in splits for path in _ambiguous(split.paths))
    return ShardPlan(images_per_shard, seed, classes or (), tuple(splits), ambiguous)


def _ambiguous(paths: list[str]) -> Iterator[str]:
    stems = Counter(os.path.splitext(path)[0] for path in paths)
    if len(stems) < len(paths):
        yield from (path for path in paths if stems[os.path.splitext(path)[0]] > 1)


def _sizes_and_changes(root: str, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    def look(start: int) -> list[tuple[int, int]]:
        found = []
        for path in paths[start : start + _STAT_CHUNK]:
            try:
                status = os.stat(f"{root}/{path}")
                found.append((status.st_size, status.st_mtime_ns))
            except OSError:  # gone since it was listed, or a link to nowhere; reading it will say so
                found.append((0, 0))
        return found

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        rows = [row for rows in pool.map(look, range(0, len(paths), _STAT_CHUNK)) for row in rows]
    both = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return both[:, 0].copy(), both[:, 1].copy()


def plan_lines(plan: ShardPlan) -> Iterator[str]:
    """A plan as JSON lines: what it is, then [path, class number, bytes, change in ns] for each file."""
    head = {
        "format": _FORMAT,
        "images_per_shard": plan.images_per_shard,
        "seed": plan.seed,
        "classes": plan.classes,
        "splits": [{"name": s.name, "folder": s.folder, "images": len(s.paths)} for s in plan.splits],
        "ambiguous": sorted(plan.ambiguous),
    }
    yield json.dumps(head) + "\n"
    for split in plan.splits:
        columns = (split.labels.tolist(), split.sizes.tolist(), split.changed.tolist())
        for row in zip(split.paths, *columns, strict=True):
            yield json.dumps(row) + "\n"


def write_plan(plan: ShardPlan, file: Path) -> None:
    """Write a plan; the bytes depend on the plan alone."""
    with open(file, "wb") as raw, gzip.GzipFile("", "wb", compresslevel=6, fileobj=raw, mtime=0) as packed:
        packed.writelines(line.encode() for line in plan_lines(plan))


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
                columns = [np.array([row[k] for row in rows], dtype=np.int64) for k in (1, 2, 3)]
                splits.append(PlannedSplit(split["name"], split["folder"], [row[0] for row in rows], *columns))
    except (OSError, EOFError, ValueError, KeyError, TypeError, StopIteration) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is damaged ({error or 'cut off'}); delete the folder and shard again") from None
    return ShardPlan(
        head["images_per_shard"], head["seed"], tuple(head["classes"]), tuple(splits), frozenset(head["ambiguous"])
    )


def changed_source(begun: ShardPlan, now: ShardPlan, finished: Mapping[str, Collection[str]]) -> str | None:
    """Why shards of one plan cannot be continued from another listing, in a few words; None when they can.

    Files that are gone do not count: they may be in finished shards, and those that are not will be missed by name.
    When a file was changed counts for those that are in finished shards; a restored one may be younger.

    Args:
        begun: The plan of the shards.
        now: A plan of the source as it is.
        finished: Name of each finished shard, and the files (paths in the source) that are not in it.
    """
    by_folder = {split.folder: split for split in begun.splits}
    written = {split.folder: np.zeros(len(split.paths), dtype=bool) for split in begun.splits}
    left_out = {path for paths in finished.values() for path in paths}
    for shard in begun.shards():
        written[shard.split.folder][shard.start : shard.stop] = shard.name in finished
    for split in now.splits:
        old = by_folder.get(split.folder)
        if old is None:
            return f"the source has a split {split.name} that it did not have"
        known = {path: i for i, path in enumerate(old.paths)}
        changed = []
        for path, size, when in zip(split.paths, split.sizes.tolist(), split.changed.tolist(), strict=True):
            i = known.get(path)
            if i is None:
                return f"the source has {split.in_source(path)}, which it did not have"
            is_in = written[split.folder][i] and split.in_source(path) not in left_out
            if size != old.sizes[i] or (is_in and when != old.changed[i]):
                changed.append(path)
        if changed:
            return f"{len(changed)} files changed since (size or time), among them {split.in_source(changed[0])}"
    return None
