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
from typing import Any, Protocol

import numpy as np
import torch

from illama.data.decode.images import BrokenImage
from illama.data.rng import global_states_kept
from illama.errors import UserError

# An epoch and a position in the source; evaluation has epoch 0 only.
Key = tuple[int, int]
# An epoch and the positions of a batch, (B,) int64.
Keys = tuple[int, np.ndarray]
# Pixels (None when unreadable), class, position, and the broken images met on the way.
Sample = tuple[torch.Tensor | None, int, int, list[BrokenImage]]

LOOK_S = 5.0  # how often both sides look whether the other one lives
_PARTING_S = 2.0  # how long a killed process is waited for


class Samples(Protocol):
    """What workers make images of; sent to each of them once.

    Attributes:
        shape: (C, H, W) of every image.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    def __getitem__(self, key: Key) -> Sample: ...

    def location(self, position: int) -> str:
        """Where an image comes from, for messages."""
        ...


@dataclass(frozen=True)
class Share:
    """What one worker does for one batch, from row `start` on."""

    batch: int
    start: int
    epoch: int
    positions: np.ndarray


@dataclass
class Done:
    """A share that was made: class and position of each image, (n,) int64; class -1 where nothing could be read."""

    labels: np.ndarray
    indices: np.ndarray
    broken: dict[str, str]


def fill(samples: Samples, share: Share, images: torch.Tensor, signs: Any = None) -> Done:
    """Make the images of a share in the rows of `images`; `signs` tells the parent how far it is."""
    done = Done(np.full(len(share.positions), -1), np.array(share.positions), {})
    with global_states_kept():
        for row, position in enumerate(share.positions.tolist()):
            if signs is not None:
                signs[0], signs[1] = position, signs[1] + 1
            pixels, label, index, broken = samples[share.epoch, position]
            done.broken.update({found.where: found.why for found in broken})
            if pixels is not None:
                images[row].copy_(pixels)
                done.labels[row], done.indices[row] = label, index
    return done


class Worker:
    """A process as its parent sees it.

    Attributes:
        process: To wait for its end.
        pipe: To wait for its word.
        shares: What it has to do, in order.
    """

    def __init__(self, context: Any, samples: Samples, memory: Any, shape: tuple[int, ...]) -> None:
        self.pipe, theirs = context.Pipe()
        self._signs = shared_bytes(16, context)  # the image that it reads, and how many it has begun
        self._look = np.frombuffer(self._signs, np.int64)
        self._look[:] = -1, 0
        self.shares: deque[Share] = deque()
        self._last_sign, self._seen = time.monotonic(), 0
        arguments = (samples, memory, shape, self._signs, theirs)
        self.process = context.Process(target=_work, args=arguments, name="illama-decoder", daemon=True)
        self.process.start()
        theirs.close()  # else its death would not end the pipe

    @property
    def position(self) -> int:
        """The image that it reads, or read last; -1 before the first."""
        return int(self._look[0])

    def give(self, share: Share) -> None:
        """Add to its work."""
        if not self.shares:
            self._last_sign = time.monotonic()
        self.shares.append(share)
        with contextlib.suppress(OSError):  # it is dead, which is seen when its word is waited for
            self.pipe.send(share)

    def hear(self) -> tuple[Share, Done] | tuple[None, None]:
        """Its next finished share; nothing when it is gone.

        Raises:
            UserError: What the worker met and the user can mend.
            RuntimeError: Any other error in the worker, with its traceback.
        """
        try:
            word = self.pipe.recv()
        except (EOFError, OSError):
            return None, None
        if isinstance(word, Exception):
            raise word
        self._last_sign = time.monotonic()
        return self.shares.popleft(), word

    def silent_s(self, since: float) -> float:
        """Seconds without an image, though it has work, of a parent that has waited since then."""
        now = time.monotonic()
        if int(self._look[1]) != self._seen:
            self._seen, self._last_sign = int(self._look[1]), now
        return now - max(self._last_sign, since) if self.shares else 0.0

    def death(self) -> str:
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


def _work(samples: Samples, memory: Any, shape: tuple[int, ...], signs: Any, pipe: Connection) -> None:
    """A worker's life."""
    for ignored in (signal.SIGINT, signal.SIGTERM):  # a signal to the whole group is for the parent to answer
        signal.signal(ignored, signal.SIG_IGN)
    torch.set_num_threads(1)
    slots = torch.frombuffer(memory, dtype=torch.uint8).view(shape)
    told, parent = np.frombuffer(signs, np.int64), os.getppid()
    word: Done | Exception
    try:
        while True:
            while not pipe.poll(LOOK_S):
                if os.getppid() != parent:
                    return
            share = pipe.recv()
            try:
                word = fill(samples, share, slots[share.batch % shape[0], share.start :], told)
            except UserError as error:
                word = error
            except Exception:
                word = RuntimeError(f"a decoding process failed:\n{traceback.format_exc()}")
            pipe.send(word)
    except (EOFError, OSError):  # the parent is gone
        return


def shared_bytes(size: int, context: Any) -> Any:
    """Memory that this process and its workers share."""
    if context.get_start_method() == "fork":
        return mmap.mmap(-1, size)  # not on /dev/shm, which containers keep small
    return RawArray("B", size)
