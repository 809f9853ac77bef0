"""The processes that share a run: who is who, and what they tell each other. One process is the ordinary case.

Processes are started by `torchrun` (or `illama launch`), which tells each of them its rank through the environment.
"""

from __future__ import annotations

import gc
import hashlib
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist

from illama.device import resolve_device
from illama.distributed.rendezvous import PATIENCE, RunPlace, first_difference, meet
from illama.errors import ToldElsewhere, UserError

T = TypeVar("T")
_LOOK_S = 0.02  # at most, between two looks whether the others have answered
# How gloo and NCCL say that somebody else is gone.
_LOST = re.compile(
    r"gloo|NCCL|Connection (closed|reset|refused)|Timed out|Broken pipe|recvValue|TCPStore", re.IGNORECASE
)


def is_sharded(thing: object) -> TypeGuard[Any]:
    """Whether FSDP (Fully Sharded Data Parallel) has cut this model, or this tensor of one."""
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a second of import, which only a run with shards pays
    return fsdp is not None and isinstance(thing, fsdp.FSDPModule | torch.distributed.tensor.DTensor)


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
        packed = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
        sizes = _all_gather(torch.tensor([len(packed)]), self.size)[:, 0].tolist()
        packed = torch.nn.functional.pad(packed, (0, max(sizes) - len(packed)))
        rows = _all_gather(packed, self.size)
        return [pickle.loads(row[:size].numpy().tobytes()) for row, size in zip(rows, sizes, strict=True)]

    def broadcast(self, value: T) -> T:
        """The value of rank 0."""
        return self.gather(value if self.is_main else None)[0]  # type: ignore[return-value]

    def wait(self) -> None:
        """Go on when all are here."""
        self.gather(None)

    def lead(self, work: Callable[[], T]) -> T:
        """Rank 0 does the work, all get its result, or its UserError."""
        return self.broadcast(self.main_only(work))  # type: ignore[return-value]

    def main_only(self, work: Callable[[], T]) -> T | None:
        """Rank 0 does the work and has the result, the others None; all get its UserError."""
        return self.agree(lambda: work() if self.is_main else None, by_each=False)

    def agree(self, work: Callable[[], T], *, by_each: bool = True) -> T:
        """Each does the work; where one meets a UserError all end with it, instead of waiting for that one.

        Args:
            work: No collective, and calls none.
            by_each: Whether an error that not all of them met says which process did.
        """
        if self.size == 1:
            return work()
        result, problem = None, None
        try:
            result = work()
        except UserError as error:
            problem = str(error)
        problems = self.gather(problem)
        met = [rank for rank, text in enumerate(problems) if text is not None]
        if met:
            whose = f"process {met[0]}: " if len(met) < self.size and by_each else ""
            raise self.error(f"{whose}{problems[met[0]]}")
        return result  # type: ignore[return-value]

    def demand_same(self, mine: Mapping[str, Any]) -> None:
        """Refuse to go on where processes were given different things.

        Args:
            mine: What this process was given, by what it is.

        Raises:
            UserError: The first that differs, with the processes and their values.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256(pickle.dumps([(name, str(value)) for name, value in mine.items()])).digest()
        if len(set(self.gather(digest))) == 1:
            return
        first, *others = self.gather({name: str(value) for name, value in mine.items()})
        for rank, other in enumerate(others, 1):
            said = first_difference(first, other, 0, rank)
            if said is not None:
                raise self.error(said)

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


def is_main_process() -> bool:
    """Whether this process, of however many, is the one that prints results."""
    return RunPlace.of_environment().rank == 0


def local_size() -> int:
    """Processes of this run on this machine."""
    return RunPlace.of_environment().local_size


@contextmanager
def join_world(device: str | None, given: Mapping[str, Any] | None = None) -> Iterator[tuple[World, torch.device]]:
    """Join the other processes of the run, if there are any, and choose this one's device.

    Args:
        device: As for `resolve_device`. Of several processes on CUDA each takes the GPU of its local rank.
        given: What this process was given, by what it is; nothing begins where others were given something else.

    Raises:
        UserError: No such device, one GPU named for several processes, or the processes were given different things.
    """
    place = RunPlace.of_environment()
    if place.size == 1:
        yield ALONE, resolve_device(device)
        return
    joined = not dist.is_initialized()  # a caller's own script may have
    if joined:
        mine = _meet_and_join(place, device, given or {})
        world = World(place.rank, place.size, place.local_size)
    else:
        world = World(dist.get_rank(), dist.get_world_size(), place.local_size)
        mine = world.agree(lambda: _own_device(device, place))
        world.demand_same({**(given or {}), "the kind of device": mine.type})
    try:
        yield world, mine
        with suppress(dist.DistError, RuntimeError):  # what was to be done together is done
            world.wait()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model, and it the group
        raise
    finally:
        if joined:
            _leave()


def _leave() -> None:
    """End the group.

    Its end waits for gloo's threads, and these need Python's lock to let go of the last tensors. torch gives the lock
    away where Python has the last word on the group; where C++ has it, as the reducer of a model under DDP does, it
    keeps the lock, and both wait for ever. A group that outlives this call has threads that need the lock after the
    interpreter's end, and crash (`illama.__main__` ends without one). So what holds the group goes first.
    """
    gc.collect()
    dist.destroy_process_group()


def cannot_join(problem: str) -> UserError:
    """Tell the other processes of the run, which wait for this one, that it cannot begin.

    Args:
        problem: Why, in words for a person.

    Returns:
        What to raise: another process may have told already what it is.
    """
    place = None
    try:
        place = RunPlace.of_environment()
        if place.size == 1:
            return UserError(problem)
        meet(place, {}, problem)
    except ToldElsewhere as elsewhere:
        return elsewhere
    except UserError:  # its own problem, or nobody is there to be told
        pass
    return UserError(problem if place is None else f"process {place.rank}: {problem}")


def _meet_and_join(place: RunPlace, device: str | None, given: Mapping[str, Any]) -> torch.device:
    try:
        mine, problem = _own_device(device, place), None
    except UserError as error:
        mine, problem = torch.device("cpu"), str(error)
    store = meet(place, {**given, "the kind of device": mine.type}, problem)
    backend = "cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=PATIENCE,
        store=store,
        rank=place.rank,
        world_size=place.size,
        device_id=mine if mine.type == "cuda" else None,
    )
    return mine


def _all_gather(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """One row of each process, on the CPU. Waits in Python, where a signal is heard meanwhile."""
    device = "cpu" if "cpu" in dist.get_backend_config() else "cuda"  # of a group that the caller's script has made
    mine = tensor.to(device)
    rows = torch.empty((size, *mine.shape), dtype=mine.dtype, device=device)
    work = dist.all_gather(list(rows), mine, async_op=True)
    pause = _LOOK_S / 64
    while not work.is_completed():
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_S)
    work.wait()
    return rows.cpu()


def _own_device(name: str | None, place: RunPlace) -> torch.device:
    if name is not None and ":" in name:
        raise UserError(f"--device {name} names one device for {place.size} processes; give cuda or cpu")
    device = resolve_device(name)
    if device.type == "mps":
        raise UserError("several processes need CUDA or the CPU; give --device cpu")
    if device.type == "cpu":
        return device
    local = place.local_rank
    if local >= torch.cuda.device_count():
        raise UserError(
            f"process {local} of this machine has no GPU of its own ({torch.cuda.device_count()} GPUs); "
            f"start {torch.cuda.device_count()} processes per machine"
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device
