"""Decoding processes that are watched: one that dies or hangs is started again, and nothing of the order changes.

    keys of a batch --pipe--> workers, a share each --shared memory--> batch, in order

Every batch has a place in shared memory, for images and targets, that all workers fill together; the pipes carry keys
and what could be read. A batch is a function of its keys, so work that was lost with a process is given out again.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import wait

import numpy as np
import torch

from illama.data.loading.decoder import LOOK_S, Done, Keys, Share, Slots, Worker, fill, shared_bytes
from illama.data.loading.samples import RawBatch, Samples
from illama.errors import UserError

RESTARTS = 3  # of one worker without a batch in between, before the run gives up
_AHEAD_IMAGES = 512  # prepared ahead of the model, in at least
_AHEAD_BATCHES = 3  # so many batches
_log = logging.getLogger("illama.data")


@dataclass
class _Pending:
    """A batch in the making."""

    number: int
    size: int
    done: dict[int, Done] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        return sum(len(part.indices) for part in self.done.values()) == self.size

    def finish(self, slots: Slots, *, pin_memory: bool, shared: bool = True) -> RawBatch:
        """The batch, in memory of its own (or in the slot, where that is not `shared`)."""
        parts, slot = [self.done[start] for start in sorted(self.done)], self.number % slots.batches
        images, targets = slots.images[slot, : self.size], slots.targets[slot, : self.size]
        indices = torch.from_numpy(np.concatenate([part.indices for part in parts]))
        readable = torch.from_numpy(np.concatenate([part.readable for part in parts]))
        if not bool(readable.all()):
            images, targets, indices = images[readable], targets[readable], indices[readable]
        broken = {where: why for part in parts for where, why in part.broken.items()}
        if pin_memory:
            images, targets = images.pin_memory(), targets.pin_memory()
        elif shared:
            images, targets = images.clone(), targets.clone()
        return RawBatch(images, targets, indices, broken)


def decoded_batches(
    samples: Samples, batches: Iterator[Keys], workers: int, timeout_s: int, *, pin_memory: bool
) -> Iterator[RawBatch]:
    """Batches in order, made by `workers` processes (0: by this one).

    Args:
        samples: Makes one image of a key.
        batches: Keys of each batch; the first batch is the largest.
        workers: Number of processes.
        timeout_s: Seconds without an image after which a worker is started again; 0 waits for ever.
        pin_memory: Page-locked memory, from which copies to a GPU run beside its work.

    Raises:
        UserError: Workers died or hung again and again.
    """
    if workers == 0:
        for epoch, positions in batches:
            slots = Slots(1, len(positions), samples)
            done = fill(samples, Share(0, 0, epoch, positions), slots)
            yield _Pending(0, len(positions), {0: done}).finish(slots, pin_memory=pin_memory, shared=False)
        return
    first = next(batches, None)
    if first is None:
        return
    pool = _Pool(samples, len(first[1]), workers, timeout_s)
    try:
        yield from pool.run(itertools.chain([first], batches), pin_memory=pin_memory)
    finally:
        pool.close()


class _Pool:
    """The processes, and the batches that they fill."""

    def __init__(self, samples: Samples, batch_size: int, workers: int, timeout_s: int) -> None:
        self._samples = samples
        self._timeout_s = timeout_s
        self._context = multiprocessing.get_context()
        self._ahead, self._batch_size = max(_AHEAD_BATCHES, -(-_AHEAD_IMAGES // batch_size)), batch_size
        self._memory = shared_bytes(Slots.nbytes(self._ahead, batch_size, samples), self._context)
        self._slots = Slots(self._ahead, batch_size, samples, self._memory)
        self._pending: deque[_Pending] = deque()
        self._restarts = [0] * workers  # of each, since a batch was finished
        self._workers: list[Worker] = []
        self._owner = os.getpid()
        atexit.register(self.close)
        for _ in range(workers):
            self._workers.append(self._start())

    def _start(self) -> Worker:
        return Worker(self._context, self._samples, self._memory, self._ahead, self._batch_size)

    def run(self, batches: Iterator[Keys], *, pin_memory: bool) -> Iterator[RawBatch]:
        """All batches in order."""
        numbered = enumerate(batches)
        while True:
            while len(self._pending) < self._ahead and (following := next(numbered, None)) is not None:
                self._give_out(*following)
            if not self._pending:
                return
            pending, since = self._pending[0], time.monotonic()
            while not pending.is_complete:
                self._listen(since)
            batch = pending.finish(self._slots, pin_memory=pin_memory)
            self._pending.popleft()
            self._restarts = [0] * len(self._workers)
            yield batch

    def _give_out(self, number: int, keys: Keys) -> None:
        """Split a batch evenly, beginning with another worker each time, as the last share may be smaller."""
        epoch, positions = keys
        self._pending.append(_Pending(number, len(positions)))
        size = -(-len(positions) // len(self._workers))
        for turn, start in enumerate(range(0, len(positions), size)):
            worker = self._workers[(number + turn) % len(self._workers)]
            worker.submit(Share(number, start, epoch, positions[start : start + size]))

    def _listen(self, since: float) -> None:
        """Wait for a result of any worker; replace those that are gone, and those silent while we wait (`since`)."""
        events = [event for worker in self._workers for event in (worker.pipe, worker.process.sentinel)]
        ready = wait(events, min(LOOK_S, self._timeout_s / 4 or LOOK_S))
        for place, worker in enumerate(self._workers):
            share, done = worker.result() if worker.pipe in ready else (None, None)
            if share is not None and done is not None:
                next(pending for pending in self._pending if pending.number == share.batch).done[share.start] = done
            elif worker.pipe in ready or worker.process.sentinel in ready:
                self._replace(place, worker.exit_reason())
            elif self._timeout_s and worker.silent_s(since) > self._timeout_s:
                self._replace(place, f"gave nothing for {self._timeout_s} s (data.worker_timeout_s)")

    def _replace(self, place: int, what: str) -> None:
        """Start a worker again, with all that it was to do."""
        lost = self._workers[place]
        lost.kill()
        self._restarts[place] += 1
        where = f" while it read {self._samples.source.location(lost.position)}" if lost.position >= 0 else ""
        if self._restarts[place] > RESTARTS:
            raise UserError(
                f"a decoding process {what}{where}; {RESTARTS} new ones did not help; check that image and the memory "
                "that is left, or give data.workers=0, which decodes in the training process"
            )
        _log.warning("a decoding process %s%s; started again (%d of %d)", what, where, self._restarts[place], RESTARTS)
        self._workers[place] = self._start()
        for share in lost.shares:
            self._workers[place].submit(share)

    def close(self) -> None:
        """End the processes at once; they hold nothing that could be lost."""
        if os.getpid() != self._owner:  # a process that was forked from the owner
            return
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.kill()
        self._workers = []


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, torch without its threads for a while: they would wait for cores that the workers have."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
