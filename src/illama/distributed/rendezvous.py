"""How the processes of a run find each other, and the first that they tell each other: what each was given.

Over a plain store of keys and values, before anything is shared: it works between processes of other versions, devices
and numbers, and what one of them cannot do all learn. All waiting is done in Python, where a signal is heard; torch's
own functions would wait for half an hour in C++, deaf to it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import illama
from illama.console.text import duration, shown
from illama.errors import ToldElsewhere, UserError

# A process that waits longer than this for the others takes them for lost.
PATIENCE = timedelta(minutes=30)
_SAY_AFTER_S = 10.0  # that others are waited for
_TELL_WITHIN_S = 10.0  # one that cannot take part waits no longer for those that it tells
_LINGER_S = 3.0  # how long the one that keeps the store stays for those that have not heard yet
_STORE_ANSWERS = timedelta(seconds=60)
_LONGEST = 100  # characters of a value that a message shows
_log = logging.getLogger("illama.distributed")
# Kept to the end of the process: its end must not take the store from those that still read, and a later meeting of the
# same processes finds it.
_stores: dict[tuple[str, int], dist.Store] = {}
_meetings = 0


@dataclass(frozen=True)
class RunPlace:
    """Which of the processes this is, as the launcher says.

    Attributes:
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process on its machine.
        local_size: Number of processes on this machine.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    @classmethod
    def of_environment(cls) -> RunPlace:
        """As `torchrun`, `illama launch` and others say it; rank 0 of 1 where nobody does.

        Raises:
            UserError: A variable is no such number.
        """
        size = _number("WORLD_SIZE", 1, 1)
        rank = _number("RANK", 0 if size == 1 else None, 0)
        if rank >= size > 1:
            raise UserError(f"RANK is {rank} and WORLD_SIZE {size}: ranks are 0 to {size - 1}; {_USE_LAUNCH}")
        return cls(rank, size, _number("LOCAL_RANK", 0, 0), _number("LOCAL_WORLD_SIZE", 1, 1))


_USE_LAUNCH = "start the processes with illama launch or torchrun, which set it"


def _number(variable: str, default: int | None, least: int) -> int:
    text = os.environ.get(variable)
    if text is None and default is not None:
        return default
    if text is None:
        raise UserError(f"WORLD_SIZE is set and {variable} is not; {_USE_LAUNCH}")
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) >= least):
        raise UserError(f"{variable} is {shown(text, _LONGEST)!r}, and has to be a number from {least}; {_USE_LAUNCH}")
    return int(text)


def first_difference(given: Mapping[str, Any], other: Mapping[str, Any], rank: int, other_rank: int) -> str | None:
    """The first thing that two processes were given differently, in words; None where there is none."""
    for name in dict.fromkeys((*given, *other)):
        if (name in given, given.get(name)) != (name in other, other.get(name)):
            values = (shown(one[name], _LONGEST) if name in one else "not there" for one in (given, other))
            mine, theirs = values
            return (
                f"the processes were given different things: {name} is {mine} for process {rank} and "
                f"{theirs} for process {other_rank}; give all of them the same command, recipe and data"
            )
    return None


def versions() -> dict[str, str]:
    """What computes: all processes have to have the same."""
    return {
        "the version of illama": f"{illama.__version__} ({_code_id()[:12]})",
        "the version of torch": torch.__version__,
    }


@functools.cache
def _code_id() -> str:
    """SHA-256 of this package's source: two checkouts may call themselves the same version."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def has_met() -> bool:
    """Whether this process has told the others what it was given, or that it cannot take part."""
    return _meetings > 0


def meet(place: RunPlace, given: Mapping[str, Any], problem: str | None = None) -> dist.Store:
    """Wait for the other processes of the run, and compare what each was given as they come.

    Args:
        place: Which of them this is.
        given: What this process was given, by what it is; plain values.
        problem: Why this process cannot take part; the others learn it.

    Returns:
        Where the processes may leave each other words from now on.

    Raises:
        UserError: One cannot take part, or was given something else. One process tells which, the others raise
            `ToldElsewhere`. Or nobody is at the agreed address.
    """
    global _meetings
    number, _meetings = _meetings, _meetings + 1
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    keeps_store = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    patience = _Patience(place, PATIENCE.total_seconds() if problem is None else _TELL_WITHIN_S)
    store = dist.PrefixStore(f"illama/{attempt}/{number}", _connect(keeps_store, patience))
    mine = {"WORLD_SIZE": place.size, **versions(), **given}
    turn = store.add("came", 1) - 1
    store.set(f"came/{turn}", json.dumps({"rank": place.rank, "problem": problem, "given": mine}, default=str))
    here: list[dict[str, Any]] = []
    while len(here) < place.size:
        if not store.check([f"came/{len(here)}"]):
            patience.wait(f"the other processes ({len(here)} of {place.size} are here)")
            continue
        here.append(json.loads(store.get(f"came/{len(here)}")))
        trouble, teller = _trouble(here)
        if trouble is not None:
            store.add("heard", 1)
            until = time.monotonic() + _LINGER_S
            while (
                keeps_store
                and store.add("heard", 0) < max(place.size, store.add("came", 0))
                and time.monotonic() < until
            ):
                time.sleep(0.02)
            raise UserError(trouble) if teller == turn else ToldElsewhere(trouble)
    return dist.PrefixStore(f"illama/{attempt}/{number}/group", _stores[_address()])


def _trouble(here: Sequence[Mapping[str, Any]]) -> tuple[str | None, int]:
    """Why those who are here cannot begin, and which of them, in the order of coming, tells it."""
    last = here[-1]
    rank = last["rank"]
    if last["problem"] is not None:
        return f"process {rank}: {last['problem']}", len(here) - 1
    if any(one["rank"] == rank for one in here[:-1]):
        return f"two processes at this MASTER_ADDR and MASTER_PORT have RANK={rank}; {_USE_LAUNCH}", len(here) - 1
    first = min(here, key=lambda one: one["rank"])
    other = last if last is not first else here[0]
    return first_difference(first["given"], other["given"], first["rank"], other["rank"]), here.index(first)


class _Patience:
    """Waiting in small steps, which a signal ends; says after a while what it waits for."""

    def __init__(self, place: RunPlace, limit_s: float) -> None:
        self._place, self._limit_s, self._since, self._said = place, limit_s, time.monotonic(), False

    def wait(self, what: str) -> None:
        """A moment.

        Raises:
            UserError: It took too long.
        """
        waited = time.monotonic() - self._since
        host, port = _address()
        where = f"{shown(host, _LONGEST)}:{port} (MASTER_ADDR, MASTER_PORT)"
        if waited > self._limit_s:
            raise UserError(
                f"process {self._place.rank} waited {duration(waited)} at {where} for {what}; give all processes the "
                "same address, and start them together"
            )
        if waited > _SAY_AFTER_S and not self._said:
            _log.warning("process %d waits at %s for %s", self._place.rank, where, what)
            self._said = True
        time.sleep(min(0.2, 0.01 + waited / 20))


def _address() -> tuple[str, int]:
    host = os.environ.get("MASTER_ADDR")
    if not host:
        raise UserError(f"WORLD_SIZE is set and MASTER_ADDR is not; {_USE_LAUNCH}")
    port = _number("MASTER_PORT", None, 1)
    if port > 65535:
        raise UserError(f"MASTER_PORT is {port}, and has to be a number from 1 to 65535; {_USE_LAUNCH}")
    return host, port


def _connect(keeps_store: bool, patience: _Patience) -> dist.Store:
    """The store at the agreed address, which rank 0 opens or the launcher keeps."""
    address = _address()
    if address not in _stores:
        try:
            _stores[address] = _open_store(*address) if keeps_store else _reach_store(*address, patience)
        except (dist.DistError, RuntimeError) as error:
            said = shown(str(error).splitlines()[0], _LONGEST)
            raise UserError(
                f"no process of this run answers at {address[0]}:{address[1]} (MASTER_ADDR, MASTER_PORT): {said}; "
                "see to it that no other program uses that port"
            ) from error
    return _stores[address]


def _open_store(host: str, port: int) -> dist.Store:
    both = socket.has_dualstack_ipv6()
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6 if both else socket.AF_INET, backlog=1024, dualstack_ipv6=both
        )
    except OSError as error:
        with suppress(dist.DistError, RuntimeError, OSError):  # is it another rank 0 of this run? It learns of it
            socket.create_connection((host, port), timeout=5).close()
            return dist.TCPStore(host, port, is_master=False, timeout=timedelta(seconds=5), wait_for_workers=False)
        raise UserError(
            f"process 0 cannot open port {port} (MASTER_PORT): {error.strerror}; end the program that has it, or give "
            "another MASTER_PORT to all processes"
        ) from error
    listening = server.detach()
    return dist.TCPStore(
        host, port, is_master=True, timeout=_STORE_ANSWERS, wait_for_workers=False, master_listen_fd=listening
    )


def _reach_store(host: str, port: int, patience: _Patience) -> dist.Store:
    while True:  # torch complains on stderr of every try
        try:
            socket.create_connection((host, port), timeout=5).close()
        except OSError:
            patience.wait("process 0")
        else:
            return dist.TCPStore(host, port, is_master=False, timeout=_STORE_ANSWERS, wait_for_workers=False)
