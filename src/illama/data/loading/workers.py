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
import mmap
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import torch

from illama.data.loading.batch import packed_bytes, unpack
from illama.data.loading.samples import RawBatch, Samples
from illama.data.rng import global_states_kept
from illama.errors import UserError

# An epoch and the positions of a batch, (B,) int64.
Keys = tuple[int, np.ndarray]

LOOK_S = 5.0  # how often both sides look whether the other one lives
_PARTING_S = 2.0  # how long a killed process is waited for


class Slots:
    """Places for batches in memory that processes may share: images (batches, size, C, H, W), and targets beside them.

    Args:
        batches: How many there are.
        size: Samples in each.
        samples: Say of which shape and type a sample is.
        memory: `nbytes` of it; new memory of this process alone when None.
    """

    def __init__(self, batches: int, size: int, samples: Samples, memory: Any = None) -> None:
        self.batches = batches
        like = self._like(batches, size, samples)
        memory = bytearray(packed_bytes(like)) if memory is None else memory
        self.images, self.targets = unpack(torch.frombuffer(memory, dtype=torch.uint8), like)

    @classmethod
    def nbytes(cls, batches: int, size: int, samples: Samples) -> int:
        """Memory that they take."""
        return packed_bytes(cls._like(batches, size, samples))

    @staticmethod
    def _like(batches: int, size: int, samples: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.empty((batches, size, *samples.shape), dtype=torch.uint8, device="meta")
        return images, torch.empty((batches, size, *samples.target_shape), dtype=samples.target_dtype, device="meta")


@dataclass(frozen=True)
class Share:
    """What one worker does for one batch, from row `start` on."""

    batch: int
    start: int
    epoch: int
    positions: np.ndarray


@dataclass
class Done:
    """A share that was made: position and readability of each image, (n,)."""

    indices: np.ndarray
    readable: np.ndarray
    broken: dict[str, str]


def fill(samples: Samples, share: Share, slots: Slots, heartbeat: Any = None) -> Done:
    """Make a share's samples in its place; `heartbeat` tells the parent how far it is."""
    done = Done(np.array(share.positions), np.zeros(len(share.positions), bool), {})
    slot = share.batch % slots.batches
    with global_states_kept():
        for row, position in enumerate(share.positions.tolist()):
            if heartbeat is not None:
                heartbeat[0], heartbeat[1] = position, heartbeat[1] + 1
            sample = samples[share.epoch, position]
            done.broken.update({broken.where: broken.why for broken in sample.broken})
            if sample.pixels is not None and sample.target is not None:
                slots.images[slot, share.start + row].copy_(sample.pixels)
                slots.targets[slot, share.start + row] = sample.target
                done.indices[row], done.readable[row] = sample.position, True
    return done


class Worker:
    """A process as its parent sees it.

    Attributes:
        process: To wait for its end.
        pipe: To wait for its answer.
        shares: What it has to do, in order.
    """

    def __init__(self, context: Any, samples: Samples, memory: Any, batches: int, size: int) -> None:
        self.pipe, theirs = context.Pipe()
        shared = shared_bytes(16, context)  # the image that it reads, and how many it has begun
        self._heartbeat = np.frombuffer(shared, np.int64)
        self._heartbeat[:] = -1, 0
        self.shares: deque[Share] = deque()
        self._last_beat, self._beats_seen = time.monotonic(), 0
        arguments = (samples, memory, batches, size, shared, theirs)
        self.process = context.Process(target=_work, args=arguments, name="illama-decoder", daemon=True)
        self.process.start()
        theirs.close()  # else its death would not end the pipe

    @property
    def position(self) -> int:
        """The image that it reads, or read last; -1 before the first."""
        return int(self._heartbeat[0])

    def submit(self, share: Share) -> None:
        """Add to its work."""
        if not self.shares:
            self._last_beat = time.monotonic()
        self.shares.append(share)
        with contextlib.suppress(OSError):  # it is dead, which is seen when its answer is waited for
            self.pipe.send(share)

    def result(self) -> tuple[Share, Done] | tuple[None, None]:
        """Its next finished share; nothing when it is gone.

        Raises:
            UserError: What the worker met and the user can mend.
            RuntimeError: Any other error in the worker, with its traceback.
        """
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            return None, None
        if isinstance(answer, Exception):
            raise answer
        self._last_beat = time.monotonic()
        return self.shares.popleft(), answer

    def silent_s(self, since: float) -> float:
        """Seconds without an image, though it has work, of a parent that has waited since then."""
        now = time.monotonic()
        if int(self._heartbeat[1]) != self._beats_seen:
            self._beats_seen, self._last_beat = int(self._heartbeat[1]), now
        return now - max(self._last_beat, since) if self.shares else 0.0

    def exit_reason(self) -> str:
        """How it ended, in words."""
        self.process.join(_PARTING_S)
        code = self.process.exitcode
        if code == -signal.SIGKILL:
            return "was killed (signal 9, as when memory runs out)"
        return f"was ended by signal {-code}" if code is not None and code < 0 else f"ended with code {code}"

    def kill(self) -> None:
        """End it, even if it is stopped or hangs."""
        self.process.kill()
        self.process.join(_PARTING_S)  # one that waits for a dead disk cannot go; it runs no code of ours any more
        self.pipe.close()


def _work(samples: Samples, memory: Any, batches: int, size: int, heartbeat: Any, pipe: Connection) -> None:
    """A worker's life."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # a signal to the whole group is for the parent to answer
        signal.signal(ignored, signal.SIG_IGN)
    torch.set_num_threads(1)
    slots, beats, parent = Slots(batches, size, samples, memory), np.frombuffer(heartbeat, np.int64), os.getppid()
    answer: Done | Exception
    try:
        while True:
            while not pipe.poll(LOOK_S):
                if os.getppid() != parent:
                    return
            share = pipe.recv()
            try:
                answer = fill(samples, share, slots, beats)
            except UserError as error:
                answer = error
            except Exception:
                answer = RuntimeError(f"a decoding process failed:\n{traceback.format_exc()}")
            pipe.send(answer)
    except (EOFError, OSError):  # the parent is gone
        return


def shared_bytes(size: int, context: Any) -> Any:
    """Memory that this process and its workers share."""
    if context.get_start_method() == "fork":
        return mmap.mmap(-1, size)  # not on /dev/shm, which containers keep small
    return RawArray("B", size)


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
