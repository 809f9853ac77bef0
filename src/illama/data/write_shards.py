"""Writes an image folder as WebDataset shards: plain tar files of key.jpg and key.cls, the images' own bytes.

```
DST/train-000000.tar ...   the shards: the same bytes whenever they are written
DST/_info.json             splits, file names, images in each shard: the layout of timm's reader
DST/classes.txt            class names in the order of their numbers
DST/_plan.jsonl.gz         every source file in the order of the shards
DST/_shards.jsonl          every finished shard with SHA-256, size, images, and the files that could not be read
DST/SHA256SUMS             for `sha256sum -c`; there when all is done
```

Whatever stops the work, the same command goes on: the plan of what goes where is stored before the first shard, a shard
gets its name only when it is complete and on the disk, and its SHA-256 is noted after that. So a stopped and continued
run ends with the same bytes as an undisturbed one.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.filesize import decimal

from illama.console.progress import WorkProgress
from illama.console.text import parse_json
from illama.data.sources.folder import FolderLayout, FolderSource, look_at_folder
from illama.data.sources.splits import is_training
from illama.errors import UserError
from illama.recipes.schema import DataConfig
from illama.system.files import at_home, is_partial, own_file, remove_partial, replacing, to_disk, write_file
from illama.system.lock import locked
from illama.system.processes import cpu_count

PLAN_FILE, FINISHED_FILE = "_plan.jsonl.gz", "_shards.jsonl"
INFO_FILE, CLASSES_FILE, SUMS_FILE = "_info.json", "classes.txt", "SHA256SUMS"
# A file or two that vanish must not cost hours of work; a source that is gone as a whole must not be sharded as empty.
MAX_LEFT_OUT = 1000
LOCK_PATIENCE_S = 5.0  # a killed writer may outlive its death by an instant; two living ones are a mistake
_BUFFER = 1 << 20
_NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT})
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


def plan_shards(layout: FolderLayout, images_per_shard: int, seed: int) -> ShardPlan:
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
        for path, (_, size, changed_at) in zip(map(split.in_source, split.paths), split.numbers.tolist(), strict=True):
            if path not in place:
                return f"the source has {path}, which it did not have"
            old, i = place[path]
            is_written = begun.shard_name(old, i) in finished and path not in left_out
            if size != old.numbers[i, 1] or (is_written and changed_at != old.numbers[i, 2]):
                changed.append(path)
    return f"{len(changed)} files changed since (size or time), among them {changed[0]}" if changed else None


@dataclass(frozen=True)
class ShardedSplit:
    """What became of a split: its name, how many images, shards and bytes it has, and whether the seed mixed it."""

    name: str
    images: int
    shards: int
    bytes: int
    shuffled: bool


@dataclass(frozen=True)
class ShardingResult:
    """What was done.

    Attributes:
        source: The image folder.
        target: The folder of shards.
        num_classes: Number of classes.
        seed: Of the order of the training images.
        splits: One entry for each split.
        kept: Shards of an earlier run whose checksums are right.
        damaged: Shards of an earlier run that were not as noted, and were written again.
        written: Shards written now, those included.
        written_bytes: Their size.
        write_s: What writing took, in seconds.
        left_out: Source files that could not be read, and why.
        passed_over: What else lies in the source, in a line; "" where there is nothing.
    """

    source: str
    target: str
    num_classes: int
    seed: int
    splits: tuple[ShardedSplit, ...]
    kept: int
    damaged: int
    written: int
    written_bytes: int
    write_s: float
    left_out: dict[str, str]
    passed_over: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class FinishedShard:
    """A line of `_shards.jsonl`.

    Attributes:
        file: Name of the shard.
        sha256: Of the whole file, hexadecimal.
        bytes: Its size.
        images: How many it holds.
        left_out: Files that could not be read, by their path in the source, and why.
    """

    file: str
    sha256: str
    bytes: int
    images: int
    left_out: dict[str, str]

    def line(self) -> str:
        """As it stands in the file."""
        return json.dumps(asdict(self)) + "\n"


class _Stopped(Exception):  # noqa: N818 - not an error of this thread
    """Another thread failed, or the user asked for an end."""


def write_shards(
    source: Path, target: Path, *, images_per_shard: int = 1000, seed: int = 0, threads: int | None = None
) -> ShardingResult:
    """Write or continue the shards of an image folder, with progress on stderr.

    Files that cannot be read are left out of their shard, counted and named in the result; the same call with the
    files restored writes those shards again. Nothing is decoded.

    Args:
        source: SPLIT/CLASS/image, or CLASS/image, which becomes the split "train".
        target: New or empty folder, or one that an earlier call with the same arguments has begun.
        images_per_shard: Images in each shard but the last one of a split.
        seed: Decides the order of the training images; other splits stay in order.
        threads: Shards written at a time; twice the number of CPUs by default.

    Raises:
        UserError: No image folder; other options or another source than the shards were begun with; a folder that
            holds something else; a full disk. Finished shards are kept in any case.
    """
    source, target = at_home(source), at_home(target)
    if not source.is_dir():
        raise UserError(f"{source} is not a folder of image folders (train/CLASS/image.jpg, or CLASS/image.jpg)")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(f"{target} lies inside of {source}, where it would become a class; give a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a new or empty folder")
    threads = threads or 2 * cpu_count()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with only_writer(target):
            layout = look_at_folder(DataConfig(name="folder", path=str(source)), None)
            plan = _plan(layout, target, images_per_shard, seed)
            finished, damaged = _verified(source, target, plan, threads)
            begun = time.perf_counter()
            missing = [shard for shard in plan.shards if shard.name not in finished]
            if missing:
                needed, free = sum(shard.tar_bytes for shard in missing), shutil.disk_usage(target).free
                if needed > free:
                    raise UserError(
                        f"{target} needs {decimal(needed)}, {decimal(free)} are free; free some or give another folder"
                    )
                _write_lists(target, plan, finished)
                _write_missing(source, target, plan, missing, finished, threads)
            if missing or not (target / SUMS_FILE).exists():
                _write_lists(target, plan, finished)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    splits = []
    for split in plan.splits:
        own = [finished[shard.name] for shard in plan.shards if shard.split is split]
        images, size = sum(shard.images for shard in own), sum(shard.bytes for shard in own)
        splits.append(ShardedSplit(split.name, images, len(own), size, split.shuffled))
    return ShardingResult(
        source=str(source),
        target=str(target),
        num_classes=len(plan.classes),
        seed=plan.seed,
        splits=tuple(splits),
        kept=len(plan.shards) - len(missing),
        damaged=damaged,
        written=len(missing),
        written_bytes=sum(finished[shard.name].bytes for shard in missing),
        write_s=time.perf_counter() - begun,
        left_out={path: why for shard in plan.shards for path, why in finished[shard.name].left_out.items()},
        passed_over=layout.passed_over.line(),
    )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Keep a second process out, where the system can lock folders; the lock ends with the process, however it ends.

    Raises:
        UserError: Another process is writing there.
    """
    if os.name == "nt":  # opens no folders
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            if not locked(handle, LOCK_PATIENCE_S):
                raise UserError(f"another process is writing shards to {folder}; wait for it, or end it")
        yield
    finally:
        os.close(handle)


def _plan(layout: FolderLayout, target: Path, images_per_shard: int, seed: int) -> ShardPlan:
    """The plan that the folder was begun with, or a new one, stored before anything else.

    Raises:
        UserError: The folder holds something else, or was begun with other options or another source.
    """
    present = sorted(entry.name for entry in target.iterdir() if not is_partial(entry.name))
    if PLAN_FILE not in present:
        if present:
            raise UserError(f"{target} holds something else ({', '.join(present[:3])}); give a new or empty folder")
        plan = plan_shards(layout, images_per_shard, seed)
        for name in plan.classes:
            if not name.isprintable() or name != name.strip():
                raise UserError(f"class folder {name!r} cannot be a line of {CLASSES_FILE}; rename it")
        remove_partial(target)  # a writer that was killed at this very moment
        with replacing(target / PLAN_FILE) as partial:
            write_plan(plan, partial)
        to_disk(target)
        return plan
    plan = read_plan(target / PLAN_FILE)
    options = ("--images-per-shard", plan.images_per_shard, images_per_shard), ("--seed", plan.seed, seed)
    reasons = [f"it was begun with {option} {then}, not {now}" for option, then, now in options if then != now]
    if not reasons:
        finished = {name: shard.left_out for name, shard in _noted(target).items()}
        changed = changed_source(plan, plan_shards(layout, images_per_shard, seed), finished)
        reasons = [changed] if changed else []
    if reasons:
        raise UserError(f"{target} cannot be continued: {'; '.join(reasons)}; undo that, or give a new folder")
    remove_partial(target)
    return plan


def _noted(target: Path) -> dict[str, FinishedShard]:
    """The shards that are noted as finished, by name; a line that a crash cut off counts as none."""
    file, noted = target / FINISHED_FILE, {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        with suppress(ValueError, TypeError):
            shard = FinishedShard(**parse_json(line))
            noted[shard.file] = shard
    return noted


def _verified(source: Path, target: Path, plan: ShardPlan, threads: int) -> tuple[dict[str, FinishedShard], int]:
    """Finished shards by name after a look at their checksums, and how many are not as they were noted.

    A shard that had to leave out a file is not finished any more when that file is back.
    """
    noted = _noted(target)
    claimed = [noted[shard.name] for shard in plan.shards if shard.name in noted]

    def is_right(shard: FinishedShard) -> bool:
        try:
            return _sha256(target / shard.file) == shard.sha256
        except OSError:
            return False
        finally:
            progress.advance(shard.bytes)

    total = sum(shard.bytes for shard in claimed)
    with WorkProgress("checking finished shards", total, "bytes") as progress, ThreadPoolExecutor(threads) as pool:
        right = [shard for shard, good in zip(claimed, pool.map(is_right, claimed), strict=True) if good]
    finished = {shard.file: shard for shard in right if not any((source / path).exists() for path in shard.left_out)}
    return finished, len(claimed) - len(right)


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _write_lists(target: Path, plan: ShardPlan, finished: dict[str, FinishedShard]) -> None:
    """What stands beside the shards, in the order of the plan and not in that in which threads were done.

    `_info.json` (splits as timm's reader wants them described) names all shards from the start, those to come with the
    images that are planned: a reader of an unfinished folder is told which are missing instead of taking them for the
    whole. The checksums are there when all is done.
    """
    (target / SUMS_FILE).unlink(missing_ok=True)
    splits: dict[str, Any] = {}
    for shard in plan.shards:
        name = shard.split.name
        entry = splits.setdefault(name, {"name": name, "num_samples": 0, "filenames": [], "shard_lengths": []})
        images = finished[shard.name].images if shard.name in finished else shard.stop - shard.start
        entry["num_samples"] += images
        entry["filenames"].append(shard.name)
        entry["shard_lengths"].append(images)
    done = [finished[shard.name] for shard in plan.shards if shard.name in finished]
    lists = {
        CLASSES_FILE: "".join(f"{name}\n" for name in plan.classes),
        INFO_FILE: json.dumps({"splits": splits}, indent=1) + "\n",
        FINISHED_FILE: "".join(shard.line() for shard in done),
    }
    if len(done) == len(plan.shards):
        lists[SUMS_FILE] = "".join(f"{shard.sha256}  {shard.file}\n" for shard in done)
    for name, text in lists.items():
        write_file(target / name, text.encode())


def _write_missing(
    source: Path,
    target: Path,
    plan: ShardPlan,
    missing: list[ShardFile],
    finished: dict[str, FinishedShard],
    threads: int,
) -> None:
    """Write shards in threads; what is finished is noted in the folder and in `finished`.

    Raises:
        UserError: The first thing that went wrong; whatever was finished until then is noted.
    """
    stop, error = threading.Event(), None
    left_out = {path: why for shard in finished.values() for path, why in shard.left_out.items()}
    with (
        open(target / FINISHED_FILE, "a", encoding="utf-8", opener=own_file) as notes,
        WorkProgress("writing shards", sum(shard.tar_bytes for shard in missing), "bytes") as progress,
        ThreadPoolExecutor(threads) as pool,
    ):
        jobs = [pool.submit(_write_shard, source, target, plan, shard, stop, progress) for shard in missing]
        try:
            for job in as_completed(jobs):
                try:
                    shard = job.result()
                    notes.write(shard.line())
                    notes.flush()
                    os.fsync(notes.fileno())
                    finished[shard.file] = shard
                    left_out |= shard.left_out
                    if len(left_out) > MAX_LEFT_OUT:
                        path, why = next(iter(left_out.items()))
                        raise UserError(
                            f"more than {MAX_LEFT_OUT} files cannot be read, among them {source / path}: {why}; look "
                            f"after {source}, then the same command goes on"
                        )
                except Exception as problem:
                    error = error or problem  # those after it are `_Stopped`
                    stop.set()
        finally:
            stop.set()
    if isinstance(error, OSError):
        todo = "free some space, then the same" if error.errno in _NO_PLACE else "the same"
        raise UserError(
            f"{target} cannot be written: {error.strerror or error}; the {len(finished)} finished shards are kept, "
            f"{todo} command goes on"
        ) from error
    if error is not None:
        raise error


def _write_shard(
    source: Path, target: Path, plan: ShardPlan, shard: ShardFile, stop: threading.Event, progress: WorkProgress
) -> FinishedShard:
    """One shard: hidden until it is complete and on the disk. Members have neither time nor owner.

    Raises:
        OSError: It cannot be written.
        _Stopped: It shall not be.
    """
    if stop.is_set():
        raise _Stopped
    split, left_out = shard.split, {}
    with replacing(target / shard.name) as partial:
        with (
            open(partial, "wb", buffering=_BUFFER) as file,
            tarfile.open(  # a name that is no UTF-8 keeps its bytes
                fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8", errors="surrogateescape"
            ) as tar,
        ):
            for i in range(shard.start, shard.stop):
                if stop.is_set():
                    raise _Stopped
                path, (label, size, _), before = split.in_source(split.paths[i]), split.numbers[i].tolist(), tar.offset
                try:
                    content = (source / path).read_bytes()
                    if len(content) != size:
                        raise OSError(f"it has {len(content)} bytes, and had {size} when it was listed")
                except OSError as error:
                    left_out[path] = error.strerror or str(error)
                    continue
                key, ending = plan.key(split.paths[i])
                for name, value in ((f"{key}.{ending}", content), (f"{key}.cls", str(label).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(value)
                    tar.addfile(member, io.BytesIO(value))
                progress.advance(tar.offset - before)
        images = shard.stop - shard.start - len(left_out)
        return FinishedShard(shard.name, _sha256(partial), partial.stat().st_size, images, left_out)
