"""Several processes on this machine that talk through gloo, as `torchrun` would start them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from illama.errors import Stopped, UserError
from tests.pictures import draw_blank

# Started once and forked for each process: importing torch takes longer than most of the tests.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    [
        "illama.training.loop",
        "tests.processes",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
    ]
)


def in_processes(count: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Run `work(*arguments)` in `count` processes of one group; results by rank.

    A `UserError` or `Stopped` counts as a result; anything else fails the test with that process's traceback.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = _CONTEXT.SimpleQueue()
    children = [
        _CONTEXT.Process(target=_one, args=(rank, count, port, results, work, arguments)) for rank in range(count)
    ]
    for child in children:
        child.start()
    found: dict[int, tuple[str, Any]] = {}
    while len(found) < count:
        ended = [child.exitcode is not None for child in children]
        if not results.empty():
            rank, result = results.get()
            found[rank] = result
        elif all(ended):
            died = {rank: child.exitcode for rank, child in enumerate(children) if rank not in found}
            others = "".join(f"\nrank {rank} {kind}: {result}" for rank, (kind, result) in sorted(found.items()))
            raise AssertionError(
                f"processes ended without a word, exit codes by rank: {died}{others}\n{_last_words(port)}"
            )
        else:
            time.sleep(0.005)
    for child in children:
        child.join()
    failed = [text for kind, text in found.values() if kind == "failed"]
    assert not failed, failed[0]
    return [found[rank][1] for rank in range(count)]


def _last_words(port: int) -> str:
    """What processes wrote to stderr that the system ended, as by a segmentation fault: C++ exceptions and stacks."""
    return "\n".join(file.read_text() for file in sorted(Path(tempfile.gettempdir()).glob(f"illama_fault_{port}_*")))


def launched(rank: int, count: int, port: int) -> dict[str, str]:
    """What a launcher on this machine tells a process of several, in its environment."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def _one(rank: int, count: int, port: int, results: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    faults = Path(tempfile.gettempdir(), f"illama_fault_{port}_{rank}")
    # Kept beside the stderr of pytest, which belongs to whichever test started the server: an exception that ends a
    # thread of C++ is said there alone.
    os.dup2(os.open(faults, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    faulthandler.enable()
    Figure.savefig = draw_blank
    if count > 1:
        os.environ |= launched(rank, count, port)
    try:
        results.put((rank, ("done", work(*arguments))))
    except (UserError, Stopped) as end:
        results.put((rank, ("done", end)))
    except BaseException:
        results.put((rank, ("failed", traceback.format_exc())))
    faulthandler.disable()
    faults.unlink()
