"""Random numbers as pure functions of (purpose, seed, position), so that any step can be drawn again."""

from __future__ import annotations

import contextlib
import enum
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a stream of random numbers is for: two purposes never share one."""

    ORDER = 1
    AUGMENT = 2
    MIX = 3
    SAMPLE = 4
    ERASE = 5
    DROP = 7
    PATCH = 8


def _state(purpose: Purpose, seed: int, *position: int) -> int:
    return int(np.random.SeedSequence((purpose, seed, *position)).generate_state(1, np.uint64)[0])


def torch_generator(purpose: Purpose, seed: int, *position: int) -> torch.Generator:
    """A generator of the CPU whose numbers depend on nothing but the arguments, all of them 0 or more."""
    return torch.Generator().manual_seed(_state(purpose, seed, *position) >> 1)


@dataclass(frozen=True)
class DrawShare:
    """A device's part of a draw batch: numbers are drawn for all of its images, and each device takes its rows of them.

    Attributes:
        total: Images of the draw batch.
        rows: Places of this device's images, (B,) int64; None where it has all of them.
    """

    total: int
    rows: torch.Tensor | None = None


@dataclass(frozen=True)
class Draws:
    """Random numbers for the images of some draw batches, one batch behind the other.

    Every draw batch has a generator of its own. So the numbers of an image depend neither on how many draw batches are
    served at once nor on how many devices share one.

    Attributes:
        generators: One of the CPU for each draw batch.
        share: This device's images of each.
    """

    generators: Sequence[torch.Generator]
    share: DrawShare

    def take(self, draw: Callable[[int, torch.Generator], torch.Tensor], dim: int = 0) -> torch.Tensor:
        """What `draw` makes of (images, generator), for this device's images; they are its dimension `dim`."""
        drawn = [draw(self.share.total, generator) for generator in self.generators]
        if self.share.rows is not None:
            drawn = [numbers.index_select(dim, self.share.rows) for numbers in drawn]
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn, dim)


def seed_global(device: torch.device, purpose: Purpose, seed: int, *position: int) -> None:
    """Seed the generators that modules draw from (drop path): torch's global ones of the CPU and of `device`."""
    state = _state(purpose, seed, *position) >> 1
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(state)
    elif device.type == "mps":
        torch.mps.manual_seed(state)


def numpy_generator(purpose: Purpose, seed: int, *position: int) -> np.random.Generator:
    """As `torch_generator`, for the distributions that torch draws only from its global state."""
    return np.random.Generator(np.random.PCG64(_state(purpose, seed, *position)))


def reseed(purpose: Purpose, seed: int, *position: int) -> None:
    """Seed Python's, numpy's and torch's global CPU generators, as augmentations of other libraries draw from them."""
    state = _state(purpose, seed, *position)
    random.seed(state)
    np.random.seed(state & 0xFFFFFFFF)
    # torch.manual_seed would reseed the accelerators too
    torch.default_generator.manual_seed(state >> 1)


@contextlib.contextmanager
def global_states_kept() -> Iterator[None]:
    """Put Python's, numpy's and torch's global CPU generators back, in the end, to what they were."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])


@contextlib.contextmanager
def global_seed(purpose: Purpose, seed: int, *position: int) -> Iterator[None]:
    """`reseed` for a while."""
    with global_states_kept():
        reseed(purpose, seed, *position)
        yield
