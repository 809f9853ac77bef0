"""The processes that share a run: who is who, and what they tell each other. One process is the ordinary case.

Processes are started by `torchrun` (or `illama launch`), which tells each of them its rank through the environment.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from illama.device import resolve_device
from illama.errors import ToldElsewhere, UserError
from illama.text import shown

T = TypeVar("T")
# A process that waits longer than this for the others takes them for lost.
PATIENCE = timedelta(minutes=30)
_SETTLE_S = 0.1
# How gloo and NCCL say that somebody else is gone.
_LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Timed out|Broken pipe|recvValue|TCPStore", re.IGNORECASE
)


@dataclass(frozen=True)
class World:
    """The processes of a run as one of them sees them.

    Every method is a collective: all processes have to call it, in the same order. Alone it answers at once.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_size: Number of processes on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks: rank 0."""
        return self.rank == 0

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add up a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.SUM)
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Largest of each element over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The value of each process, in the order of ranks, on every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Go on when all are here."""
        self.gather(None)

    def lead(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work, all get its result, or its UserError."""
        return self.broadcast(self.main_only(work))  # type: ignore[return-value]

    def main_only(self, work: Callable[[], T]) -> T | None:
        """Rank 0 does the work and has the result, the others None; all get its UserError."""
        return self.agree(lambda: work() if self.is_main else None)

    def agree(self, work: Callable[[], T]) -> T:
        """Each does the work; where one meets a UserError all end with it, instead of waiting for that one."""
        if self.size == 1:
            return work()
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        problems = [each for each in self.gather(problem) if each is not None]
        if problems:
            raise self.error(problems[0])
        return result  # type: ignore[return-value]

    def demand_same(self, mine: Mapping[str, Any]) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            mine: What this process was given, by what it is.

        Raises:
            UserError: The first that differs, with the processes and their values.
        """
        all_of_them = self.gather(dict(mine))
        for name, value in all_of_them[0].items():
            other = next((rank for rank, one in enumerate(all_of_them) if one.get(name) != value), None)
            if other is not None:
                theirs = all_of_them[other][name]
                raise self.error(
                    f"the processes were given different things: {name} is {shown(value)} for process 0 and "
                    f"{shown(theirs)} for process {other}; give all of them the same command, recipe and data"
                )

    def error(self, message: str) -> UserError:
        """A UserError that every process raises, and rank 0 alone tells."""
        return UserError(message) if self.is_main else ToldElsewhere(message)

    @contextmanager
    def losing_nobody(self, advice: str) -> Iterator[None]:
        """Turns the failure of a collective, when another process has gone, into a UserError."""
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
                raise
            message = f"process {self.rank} lost another of the {self.size} processes of this run; {advice}"
            # with rank 0 gone, rank 1 is the one to tell
            raise UserError(message) if self.rank < 2 else ToldElsewhere(message) from error


ALONE = World()


class Vote:
    """A question put to all processes once per step, without waiting: the answer comes with the next one.

    Every process gets the same answer at the same step: whether any of them said yes.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._ballot = torch.zeros(1, dtype=torch.int32)  # on the CPU: the device is not disturbed
        self._pending: Any = None

    def cast(self, yes: bool) -> bool:
        """Say yes or no; returns the outcome of the previous round (alone: of this one)."""
        if self._world.size == 1:
            return yes
        outcome = self.close()
        self._ballot[0] = int(yes)
        self._pending = dist.all_reduce(self._ballot, dist.ReduceOp.MAX, async_op=True)
        return outcome

    def close(self) -> bool:
        """Wait for the round under way and return its outcome."""
        if self._pending is not None:
            self._pending.wait()
            self._pending = None
        return bool(self._ballot[0])


def under_launcher() -> bool:
    """Whether `torchrun` or another launcher started this as one of several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main_process() -> bool:
    """Whether this process, of however many, is the one that prints results."""
    return int(os.environ.get("RANK", "0")) == 0


def local_size() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


@contextmanager
def join_world(device: str | None) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes of the run, if there are any, and choose this one's device.

    Args:
        device: As for `resolve_device`. Of several processes on CUDA each takes the GPU of its local rank.

    Raises:
        UserError: No such device, or one GPU named for several processes.
    """
    if not under_launcher():
        yield ALONE, resolve_device(device)
        return
    mine = _own_device(device)
    joined = not dist.is_initialized()  # a caller's own script may have
    if joined:
        backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE, device_id=mine if mine.type == "cuda" else None)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), local_size()), mine
        dist.barrier()
    finally:
        if joined:
            # gloo's threads need Python's lock to let go of the last tensors, and the end of the group waits for these
            # threads with the lock held: they must be through before.
            time.sleep(_SETTLE_S)
            dist.destroy_process_group()


def _own_device(name: str | None) -> torch.device:
    if name is not None and ":" in name:
        raise UserError(f"--device {name} names one device for {os.environ['WORLD_SIZE']} processes; give cuda or cpu")
    device = resolve_device(name)
    if device.type == "mps":
        raise UserError("several processes need CUDA or the CPU; give --device cpu")
    if device.type == "cpu":
        return device
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} GPUs); "
            f"start {torch.cuda.device_count()} processes per machine"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
