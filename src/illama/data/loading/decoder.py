"""One decoding process: what it is sent, what it does, and what its parent sees of it."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np
import torch

from illama.data.loading.samples import Samples
from illama.data.loading.staging import packed_bytes, unpack
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
