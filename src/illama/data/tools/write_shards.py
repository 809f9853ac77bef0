"""Writes an image folder as WebDataset shards: plain tar files of key.jpg and key.cls, the images' own bytes.

Whatever stops the work, the same command goes on: a shard gets its name only when it is complete and on the disk, its
SHA-256 is noted after that, and the plan of what goes where was stored before the first one. So a stopped and continued
run ends with the same bytes as an undisturbed one. The files of the folder: `shard_folder.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from illama.console.progress import WorkProgress
from illama.data.loading.memory import cpu_count
from illama.data.sources.folder import FolderLayout
from illama.data.tools.shard_folder import (
    CLASSES_FILE,
    JOURNAL_FILE,
    PLAN_FILE,
    SUMS_FILE,
    FinishedShard,
    TarWriter,
    appearing,
    only_writer,
    read_journal,
    write_after,
    write_before,
)
from illama.data.tools.shard_plan import (
    ShardFile,
    ShardPlan,
    changed_source,
    look_at_source,
    make_plan,
    read_plan,
    write_plan,
)
from illama.errors import UserError
from illama.system.files import is_partial, own_file, remove_partial
from illama.system.given_file import at_home

# A file or two that vanish must not cost hours of work; a source that is gone as a whole must not be sharded as empty.
MAX_LEFT_OUT = 1000
_BUFFER = 1 << 20
_NO_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT})


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


class _Cancelled(Exception):  # noqa: N818 - not an error of this thread
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
    _check_places(source, target)
    threads = threads or 2 * cpu_count()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with only_writer(target):
            layout = look_at_source(source)
            plan = _plan(source, layout, target, images_per_shard, seed)
            shards = plan.shards()
            finished, damaged = _verified(source, target, shards, threads)
            begun = time.perf_counter()
            missing = [shard for shard in shards if shard.name not in finished]
            if missing:
                _check_space(target, missing)
                write_before(target, plan, finished)
                _write_missing(source, target, plan, missing, finished, threads)
            if missing or not (target / SUMS_FILE).exists():
                write_after(target, plan, finished)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    fresh = [finished[shard.name] for shard in missing]
    return ShardingResult(
        str(source),
        str(target),
        len(plan.classes),
        plan.seed,
        _by_split(plan, finished),
        len(shards) - len(missing),
        damaged,
        len(missing),
        sum(one.bytes for one in fresh),
        time.perf_counter() - begun,
        {path: why for shard in shards for path, why in finished[shard.name].left_out.items()},
        layout.passed_over.line(),
    )


def _check_places(source: Path, target: Path) -> None:
    if not source.is_dir():
        raise UserError(f"{source} is not a folder of image folders (train/CLASS/image.jpg, or CLASS/image.jpg)")
    if source.resolve() in (target.resolve(), *target.resolve().parents):
        raise UserError(f"{target} lies inside of {source}, where it would become a class; give a folder elsewhere")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; give a new or empty folder")


def _check_space(target: Path, missing: list[ShardFile]) -> None:
    needed, free = sum(shard.tar_bytes for shard in missing), shutil.disk_usage(target).free
    if needed > free:
        raise UserError(f"{target} needs {decimal(needed)}, {decimal(free)} are free; free some or give another folder")


def _plan(source: Path, layout: FolderLayout, target: Path, images_per_shard: int, seed: int) -> ShardPlan:
    """The plan that the folder was begun with, or a new one, stored before anything else."""
    present = sorted(entry.name for entry in target.iterdir())
    file = target / PLAN_FILE
    if PLAN_FILE in present:
        plan = read_plan(file)
        _check_same(layout, target, plan, images_per_shard, seed)
        remove_partial(target)
        return plan
    others = [name for name in present if not is_partial(name)]
    if others:
        raise UserError(f"{target} holds something else ({', '.join(others[:3])}); give a new or empty folder")
    plan = make_plan(layout, images_per_shard, seed)
    for name in plan.classes:
        if not name.isprintable() or name != name.strip():
            raise UserError(f"class folder {name!r} cannot be a line of {CLASSES_FILE}; rename it")
    with appearing(file) as partial:
        write_plan(plan, partial)
    return plan


def _check_same(layout: FolderLayout, target: Path, plan: ShardPlan, images_per_shard: int, seed: int) -> None:
    """Refuse to continue with other options or another source."""
    options = ("--images-per-shard", plan.images_per_shard, images_per_shard), ("--seed", plan.seed, seed)
    reasons = [f"it was begun with {option} {then}, not {now}" for option, then, now in options if then != now]
    if not reasons:
        finished = {one.file: one.left_out for one in read_journal(target)}
        changed = changed_source(plan, make_plan(layout, images_per_shard, seed), finished)
        reasons = [changed] if changed else []
    if reasons:
        raise UserError(f"{target} cannot be continued: {'; '.join(reasons)}; undo that, or give a new folder")


def _verified(
    source: Path, target: Path, shards: list[ShardFile], threads: int
) -> tuple[dict[str, FinishedShard], int]:
    """Finished shards by name after a look at their checksums, and how many are not as they were noted.

    A shard that had to leave out a file is not finished any more when that file is back.
    """
    noted = {one.file: one for one in read_journal(target)}
    known = [noted[shard.name] for shard in shards if shard.name in noted]

    def is_right(one: FinishedShard) -> bool:
        try:
            with open(target / one.file, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == one.sha256
        except OSError:
            return False
        finally:
            progress.advance(one.bytes)

    total = sum(one.bytes for one in known)
    with WorkProgress("checking finished shards", total, "bytes") as progress, ThreadPoolExecutor(threads) as pool:
        right = [one for one, good in zip(known, pool.map(is_right, known), strict=True) if good]
    finished = {one.file: one for one in right if not any((source / path).exists() for path in one.left_out)}
    return finished, len(known) - len(right)


def _write_missing(
    source: Path,
    target: Path,
    plan: ShardPlan,
    missing: list[ShardFile],
    finished: dict[str, FinishedShard],
    threads: int,
) -> None:
    """Write shards in threads; each enters the journal and `finished`."""
    stop, lock = threading.Event(), threading.Lock()
    with (
        open(target / JOURNAL_FILE, "a", encoding="utf-8", opener=own_file) as journal,
        WorkProgress("writing shards", sum(shard.tar_bytes for shard in missing), "bytes") as progress,
        ThreadPoolExecutor(threads) as pool,
    ):

        def write(shard: ShardFile) -> None:
            try:
                note(_write_shard(source, target, plan, shard, stop, progress))
            except BaseException:
                stop.set()
                raise

        def note(one: FinishedShard) -> None:
            with lock:
                journal.write(one.line())
                journal.flush()
                os.fsync(journal.fileno())
                finished[one.file] = one
                if one.left_out and sum(len(other.left_out) for other in finished.values()) > MAX_LEFT_OUT:
                    raise _too_many(finished, source)

        jobs: list[Future[None]] = [pool.submit(write, shard) for shard in missing]
        try:
            wait(jobs, return_when=FIRST_EXCEPTION)
        finally:  # where all went well there is nothing left to stop
            stop.set()
            pool.shutdown(cancel_futures=True)
        for job in jobs:
            error = None if job.cancelled() else job.exception()
            if isinstance(error, OSError):
                raise _not_written(error, target, len(finished)) from error
            if error is not None and not isinstance(error, _Cancelled):
                raise error


def _not_written(error: OSError, target: Path, finished: int) -> UserError:
    todo = "free some space, then the same command goes on" if error.errno in _NO_PLACE else "the same command goes on"
    return UserError(
        f"{target} cannot be written: {error.strerror or error}; the {finished} finished shards are kept, {todo}"
    )


def _too_many(finished: dict[str, FinishedShard], source: Path) -> UserError:
    path, why = next(item for one in finished.values() for item in one.left_out.items())
    return UserError(
        f"more than {MAX_LEFT_OUT} files cannot be read, among them {source / path}: {why}; look after {source}, then "
        "the same command goes on"
    )


def _write_shard(
    source: Path, target: Path, plan: ShardPlan, shard: ShardFile, stop: threading.Event, progress: WorkProgress
) -> FinishedShard:
    """One shard: hidden until it is complete and on the disk.

    Raises:
        OSError: It cannot be written.
    """
    split, file, left_out = shard.split, target / shard.name, {}
    with appearing(file) as partial, open(partial, "wb", buffering=_BUFFER) as raw:
        tar = TarWriter(raw)
        for i in range(shard.start, shard.stop):
            if stop.is_set():
                raise _Cancelled
            path = split.in_source(split.paths[i])
            before = tar.bytes
            try:
                content = _content(source / path, int(split.sizes[i]))
            except OSError as error:
                left_out[path] = error.strerror or str(error)
                continue
            key, ending = plan.key(split.paths[i])
            tar.add(f"{key}.{ending}", content)
            tar.add(f"{key}.cls", str(split.labels[i]).encode())
            progress.advance(tar.bytes - before)
        tar.end()
    images = shard.stop - shard.start - len(left_out)
    return FinishedShard(shard.name, tar.sha256.hexdigest(), tar.bytes, images, left_out)


def _content(file: Path, size: int) -> bytes:
    content = file.read_bytes()
    if len(content) != size:
        raise OSError(f"it has {len(content)} bytes, and had {size} when it was listed")
    return content


def _by_split(plan: ShardPlan, finished: dict[str, FinishedShard]) -> tuple[ShardedSplit, ...]:
    shards, splits = plan.shards(), []
    for split in plan.splits:
        done = [finished[shard.name] for shard in shards if shard.split is split]
        images, size = sum(one.images for one in done), sum(one.bytes for one in done)
        splits.append(ShardedSplit(split.name, images, len(done), size, split.shuffled))
    return tuple(splits)
