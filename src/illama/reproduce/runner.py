"""Trains the runs of a plan: several at a time, on several devices; what is finished is left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from illama.data.memory import cpu_count
from illama.data.progress import WorkProgress
from illama.errors import Stopped, UserError
from illama.processes import end_with_parent
from illama.recipes import Recipe
from illama.reproduce.plan import PlannedRun
from illama.training.runs import read_run
from illama.training.signals import stop_signals

LOOK_EVERY_S = 0.5  # how often the progress of the runs is read


@dataclass
class Outcome:
    """What became of the runs of a plan.

    Attributes:
        trained: Runs that were trained now.
        finished_before: Runs that were finished already.
        failed: Run folder's name -> why it has no result.
    """

    trained: int = 0
    finished_before: int = 0
    failed: dict[str, str] = field(default_factory=dict)


class Slot:
    """A process of its own that trains one run after the other on one device.

    Args:
        device: Its name.
        threads: Threads that it computes with; None leaves torch's choice.
    """

    def __init__(self, device: str, threads: int | None) -> None:
        self.device = device
        self._threads = threads
        self._pool = self._new_pool()
        self.last: Recipe | None = None

    def submit(self, work: Callable[..., Any], run: PlannedRun, log: Path) -> Future[Any]:
        """Have the process do `work(recipe, folder, weights, device)` with what it says going to a file.

        Networks compiled for another architecture are forgotten; the seeds of one row share theirs.
        """
        anew = self.last is not None and run.recipe.model != self.last.model
        self.last = run.recipe
        return self._pool.submit(_work, work, run.recipe, run.folder, run.weights, self.device, log, anew)

    def renew(self) -> None:
        """Another process in place of one that died."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._pool = self._new_pool()

    def send(self, number: signal.Signals) -> None:
        """A signal to the process."""
        for pid in list(self._pool._processes or {}):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End the process when it has done its work."""
        self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # not forked: CUDA does not survive that
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (self._threads,))


@contextmanager
def open_slots(devices: Sequence[str], jobs: int) -> Iterator[list[Slot]]:
    """`jobs` processes for each device. On the CPU they share its cores."""
    names = [name for _ in range(jobs) for name in devices]
    on_cpu = sum(name == "cpu" for name in names)
    slots = [Slot(name, max(1, cpu_count() // on_cpu) if name == "cpu" else None) for name in names]
    try:
        yield slots
    except BaseException:
        for slot in slots:
            slot.send(signal.SIGKILL)
        raise
    finally:
        for slot in slots:
            slot.close()


def train_all(runs: Sequence[PlannedRun], slots: Sequence[Slot], out: Path) -> Outcome:
    """Train what is not finished.

    A run that fails does not stop the others; a signal stops all of them after they have saved.

    Args:
        runs: The plan.
        slots: Where they are trained.
        out: Folder of the study; what the runs say goes to its folder `logs`.

    Raises:
        Stopped: A signal came. The same call goes on.
    """
    outcome = Outcome()
    todo = [run for run in runs if not run.is_finished]
    outcome.finished_before = len(runs) - len(todo)
    if not todo:
        return outcome
    epochs = sum(run.recipe.schedule.epochs for run in todo)
    active: dict[Future[float], tuple[Slot, PlannedRun]] = {}
    waiting, count = list(todo), len(todo)
    with stop_signals() as stop_asked, WorkProgress(f"training {count} runs", epochs, "epochs") as progress:
        seen = _Seen(progress, todo)
        while waiting or active:
            if stop_asked.is_set():
                _stop(active)
            _fill(slots, active, waiting, out)
            done, _ = wait(active, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            seen.look([run for _, run in active.values()])
            for future in done:
                slot, run = active.pop(future)
                line = _settle(future, slot, run, outcome)
                if stop_asked.is_set():
                    continue
                ended = outcome.trained + len(outcome.failed)
                progress.say(f"{run.folder.name}: {line} ({ended} of {count} runs)")
    return outcome


def _fill(
    slots: Sequence[Slot],
    active: dict[Future[float], tuple[Slot, PlannedRun]],
    waiting: list[PlannedRun],
    out: Path,
) -> None:
    """Give each idle process a run, one of the network that it had last where there is one."""
    busy = {slot for slot, _ in active.values()}
    for slot in slots:
        if slot in busy or not waiting:
            continue
        same = [run for run in waiting if slot.last is not None and run.recipe.model == slot.last.model]
        run = (same or waiting)[0]
        waiting.remove(run)
        active[slot.submit(_train, run, out / "logs" / f"{run.folder.name}.txt")] = (slot, run)


def _settle(future: Future[float], slot: Slot, run: PlannedRun, outcome: Outcome) -> str:
    """Take note of a run that has ended; how, in words."""
    try:
        top1 = future.result()
    except (UserError, Stopped) as error:
        outcome.failed[run.folder.name] = str(error)
        return f"failed: {error}"
    except BrokenProcessPool:
        slot.renew()
        outcome.failed[run.folder.name] = "its process died, as when memory runs out"
        return "its process died"
    outcome.trained += 1
    return f"top-1 {top1:.2f} %"


def _stop(active: dict[Future[float], tuple[Slot, PlannedRun]]) -> NoReturn:
    """Have all runs save, and leave."""
    for slot, _ in active.values():
        slot.send(signal.SIGTERM)
    wait(active)
    saved = sum(isinstance(future.exception(), Stopped) for future in active)
    at_once = len(active) - saved  # a run that had not begun to listen, or has just finished
    others = f", {at_once} ended without" if at_once else ""
    raise Stopped(f"stopped; {saved} running run(s) saved{others}; run the same command again to continue")


class _Seen:
    """Epochs done, as the runs' logs tell."""

    def __init__(self, progress: WorkProgress, runs: Sequence[PlannedRun]) -> None:
        self._progress = progress
        self._epochs = {run.folder: 0 for run in runs}

    def look(self, runs: Sequence[PlannedRun]) -> None:
        for run in runs:
            epoch = int(read_run(run.folder).epoch) if run.folder.is_dir() else 0
            if epoch > self._epochs[run.folder]:
                self._progress.advance(epoch - self._epochs[run.folder])
                self._epochs[run.folder] = epoch


def _begin(threads: int | None) -> None:
    """Make ready a process: away from the terminal, whose Ctrl-C is for the parent to pass on, once."""
    if hasattr(os, "setsid"):
        os.setsid()
    else:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()  # a run that ends like this goes on from its last checkpoint
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


def _work(
    work: Callable[..., Any], recipe: Recipe, folder: Path, weights: Path | None, device: str, log: Path, anew: bool
) -> Any:
    """In the process: do it, with everything that is said going to the log."""
    import torch

    if anew:
        torch.compiler.reset()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as said, redirect_stderr(said), redirect_stdout(said):
        return work(recipe, folder, weights, device)


def _train(recipe: Recipe, folder: Path, weights: Path | None, device: str) -> float:
    from illama.training import train

    return train(recipe, folder, device=device, init_from=weights).top1
