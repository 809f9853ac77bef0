"""The command line in processes that tests can watch, freeze, starve and kill.

Each command runs `illama.cli.main.main` in a fork of one prepared process: importing torch takes longer than most runs
of these tests. What it is doing stands in a file that it shares with the test, so that a kill can be aimed.
"""

from __future__ import annotations

import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from illama.cli.main import main
from tests.runs import records, same_weights

PATIENCE_S = 120
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc (Linux)")
_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(
    [
        "tests.end_to_end.commands",
        "tests.processes",
        "illama.training.loop",
        "illama.cli.train",
        "torch._dynamo",
        "torch.distributed.fsdp",
        "torch.utils.tensorboard",
        "matplotlib.pyplot",
        "timm.data",
    ]
)
# Digits, 10 steps per epoch, 60 in all, a checkpoint every three steps and after each epoch.
RUN = (
    *("train", "digits_micro", "--device", "cpu"),
    *("model.embed_dim=16", "model.depth=2", "model.num_heads=2", "model.drop_path=0.1"),
    *("schedule.epochs=6", "schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=3"),
    *("data.max_train_images=320", "data.max_eval_images=60", "train.total_batch=32", "train.accumulation=2"),
    *("optimizer.lr=1e-2", "optimizer.lr_batch=32"),
    *("train.ema_decay=0.9", "train.save_every_steps=3", "train.log_every_steps=2", "train.eval_every_epochs=1"),
)


class Phase(IntEnum):
    """What the main thread of a training command does."""

    START = 0
    DECODING = 1  # it waits for images
    STEP = 2
    BETWEEN = 3  # log line, schedules, copies for the save
    EVALUATION = 4
    END = 5  # the last files and the pictures


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def problem(self) -> str:
        """The one line that it ended with, as an error that the user can fix."""
        lines = [line for line in self.err.splitlines() if "error:" in line]
        assert (self.code, len(lines)) == (2, 1), self.err
        assert "Traceback" not in self.err, self.err
        return lines[0]

    def fine(self) -> Ended:
        """Itself, after a look at the exit code."""
        assert self.code == 0, self.err
        return self


class Command:
    """A command that runs in a process of its own.

    Args:
        words: What follows `illama`.
        folder: Where it may leave what it says.
        mere_owner: Whether folder modes bind it even if the test runs as root.
        before: Called in the process before the command.
    """

    def __init__(
        self, *words: object, folder: Path, mere_owner: bool = False, before: Callable[[], Any] | None = None
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="command", dir=folder))
        self._board = _board(self._folder, "w+")
        for name in ("out", "err"):  # a kill may come before the process opens them
            (self._folder / name).touch()
        arguments = ([str(word) for word in words], self._folder, mere_owner, before)
        self._process = _FORKED.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def step(self) -> int:
        """Optimizer steps that the run had done when the current one began."""
        return int(self._board[1])

    @property
    def phase(self) -> Phase:
        return Phase(int(self._board[0]))

    @property
    def is_saving(self) -> bool:
        """Whether a checkpoint is being written, in the background."""
        return bool(self._board[2])

    @property
    def is_alive(self) -> bool:
        return self._process.exitcode is None

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something that the command does; its end instead fails the test."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.is_alive, f"ended before: {self.end()}"
            assert time.monotonic() < deadline, f"waited in vain: {self._said()}"
            time.sleep(0.0003)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """All of its threads stand still; what it is doing is then what it was doing."""
        self.send(signal.SIGSTOP)
        self.until(lambda: _stat(self.pid)[0] in "TZX")
        try:
            yield
        finally:
            if self.is_alive:
                self.send(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL; its decoding processes follow it by themselves."""
        self.send(signal.SIGKILL)
        assert self.end().code == -signal.SIGKILL

    def end(self) -> Ended:
        """Wait for its end."""
        self._process.join(PATIENCE_S)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"does not end: {self._said()}")
        return Ended(self._process.exitcode, *self._said())

    def _said(self) -> tuple[str, str]:
        return (self._folder / "out").read_text(), (self._folder / "err").read_text()


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averaged weights, best weights and metrics.jsonl are those of another run, bit for bit."""
    for tag in ("last", "best"):
        for file in ("model.safetensors", "ema.safetensors"):
            assert same_weights(one, other, tag, file), f"{tag}/{file}"
    assert records(one) == records(other)


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    everybody = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [each for each in everybody if _stat(each)[1] == str(pid)]


def gone(pid: int) -> bool:
    """Whether a process runs no more; one that nobody has waited for yet counts as gone."""
    return _stat(pid)[0] in "ZX"


def wait_until_gone(pids: list[int], within_s: float = 30) -> None:
    """A decoding process looks every few seconds whether its parent lives."""
    deadline = time.monotonic() + within_s
    while left := [pid for pid in pids if not gone(pid)]:
        assert time.monotonic() < deadline, f"left behind: {left}"
        time.sleep(0.05)


def _stat(pid: int) -> list[str]:
    """State and parent of a process; state X where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["X", "0"]


def _board(folder: Path, mode: Any) -> Any:
    """Phase, steps done, and whether a save is under way."""
    return np.memmap(folder / "board", np.int64, mode, shape=(3,))


def _run(words: list[str], folder: Path, mere_owner: bool, before: Callable[[], Any] | None) -> None:
    torch.set_num_threads(1)
    # what a command that was not forked here has: this system's default comes first
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    _report_on(_board(folder, "r+"))
    if mere_owner and os.geteuid() == 0:
        _give_up_roots_rights()
    if before is not None:
        before()
    sys.exit(main(words))


def _report_on(board: Any) -> None:
    """Have the training loop say what it does."""
    from illama.checkpoint import Saver
    from illama.training.loop import Run

    def marked(work: Callable[..., Any], place: int, value: int) -> Callable[..., Any]:
        @functools.wraps(work)
        def marking(*arguments: Any, **options: Any) -> Any:
            before = int(board[place])
            board[place] = value
            try:
                return work(*arguments, **options)
            finally:
                board[place] = before

        return marking

    step = Run._step

    def numbered(self: Run, batches: Iterator[Any]) -> float:
        board[1] = self.state.progress.step
        following = marked(lambda: next(batches), 0, Phase.DECODING)
        return step(self, iter(following, None))

    Run._step = marked(numbered, 0, Phase.STEP)  # type: ignore[method-assign]
    Run._train_steps = marked(Run._train_steps, 0, Phase.BETWEEN)  # type: ignore[method-assign]
    Run._evaluate = marked(Run._evaluate, 0, Phase.EVALUATION)  # type: ignore[method-assign]
    Run._draw = marked(Run._draw, 0, Phase.END)  # type: ignore[method-assign]
    Saver._write = marked(Saver._write, 2, 1)  # type: ignore[method-assign]


def _give_up_roots_rights() -> None:
    """Keep the user, drop the capabilities: from now on a folder without the write bit cannot be written to."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    nothing = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")
