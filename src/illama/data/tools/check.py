"""Reads every image of a data set once, in processes, and tells what is wrong before hours of training are spent."""

from __future__ import annotations

import multiprocessing
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from illama.console.progress import WorkProgress
from illama.data.layout import WHOLE, Layout, look
from illama.data.source import Source
from illama.data.tools.check_result import ROW, CheckedSplit, CheckResult, Issue, inspect
from illama.errors import UserError
from illama.system.processes import cpu_count, end_with_parent

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

CRASHED = "the decoder crashed or ran out of memory"
_CHUNK = 64
_IN_FLIGHT = 4  # chunks for each process: none waits, and memory stays bounded

Inspected = tuple[np.ndarray, dict[int, str]]


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


_sources: list[Source] = []
_min_side = 0


def _begin(sources: list[Source], min_side: int) -> None:
    """Make ready a process of the pool."""
    global _sources, _min_side
    _sources, _min_side = sources, min_side
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that the user sees ends the others
    warnings.simplefilter("ignore")  # Pillow's, of odd files; what matters is in the result
    end_with_parent()


def _inspect(chunk: _Chunk) -> Inspected:
    return inspect(_sources[chunk.split], chunk.start, chunk.stop, _min_side)
