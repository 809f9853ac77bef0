"""Trains the runs of a plan: several at a time, on several devices; what is finished is left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from illama.checkpoint.folder import has_checkpoint
from illama.console.progress import WorkProgress
from illama.data.loading.memory import cpu_count
from illama.errors import Stopped, UserError
from illama.recipes import Recipe
from illama.reproduce.plan import PlannedRun
from illama.system.files import own_file
from illama.system.processes import end_with_parent
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
        with _kept_from_new_processes(signal.SIGINT):  # the terminal's Ctrl-C is for the parent to pass on, once
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

    def kill(self) -> None:
        """End the process now."""
        for process in list((self._pool._processes or {}).values()):
            process.kill()

    def close(self) -> None:
        """End the process when it has done its work."""
        self._pool.shutdown(cancel_futures=True)

    def _new_pool(self) -> ProcessPoolExecutor:
        # not forked: CUDA does not survive that
        return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (self._threads,))


@contextmanager
def _kept_from_new_processes(number: signal.Signals) -> Iterator[None]:
    """Processes that are started inside never get the signal; for this one it waits (POSIX)."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def open_slots(devices: Sequence[str], jobs: int) -> Iterator[list[Slot]]:
    """`jobs` processes for each device. On the CPU they share its cores, unless OMP_NUM_THREADS says otherwise."""
    names = [name for _ in range(jobs) for name in devices]
    on_cpu = sum(name == "cpu" for name in names)
    share = None if "OMP_NUM_THREADS" in os.environ else max(1, cpu_count() // max(1, on_cpu))
    slots = [Slot(name, share if name == "cpu" else None) for name in names]
    try:
        yield slots
    except BaseException:
        for slot in slots:
            slot.kill()
        raise
    finally:
        for slot in slots:
            slot.close()


class Jobs:
    """Runs that go through the slots, one after the other in each; iterate to wait for them.

    Every `LOOK_EVERY_S` the iteration gives the runs that have ended since: (run, what became of the work).

    Args:
        slots: Where they go.
        work: Called in the slot's process with (recipe, folder, weights, device).
        runs: The runs, in order; a slot takes one of the network that it had last before another.
        log: What a run says goes to `log(run)`.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        work: Callable[..., Any],
        runs: Iterable[PlannedRun],
        log: Callable[[PlannedRun], Path],
    ) -> None:
        self._slots, self._work, self._log = slots, work, log
        self._waiting = list(runs)
        self._active: dict[Future[Any], tuple[Slot, PlannedRun]] = {}

    @property
    def is_done(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._waiting or self._active)

    @property
    def running(self) -> list[PlannedRun]:
        """The runs that are in a slot now."""
        return [run for _, run in self._active.values()]

    def __iter__(self) -> Iterator[list[tuple[PlannedRun, Future[Any]]]]:
        while not self.is_done:
            self._fill()
            done, _ = wait(self._active, timeout=LOOK_EVERY_S, return_when=FIRST_COMPLETED)
            ended = []
            for future in done:
                slot, run = self._active.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    slot.renew()
                ended.append((run, future))
            yield ended

    def stop(self) -> NoReturn:
        """Have all that are running save, and leave."""
        for slot, _ in self._active.values():
            slot.send(signal.SIGTERM)
        wait(self._active)
        saved = sum(isinstance(future.exception(), Stopped) for future in self._active)
        at_once = len(self._active) - saved  # a run that had not begun to listen, or has just finished
        others = f", {at_once} ended without" if at_once else ""
        raise Stopped(f"stopped; {saved} running run(s) saved{others}; run the same command again to continue")

    def _fill(self) -> None:
        busy = {slot for slot, _ in self._active.values()}
        for slot in self._slots:
            if slot in busy or not self._waiting:
                continue
            same = [run for run in self._waiting if slot.last is not None and run.recipe.model == slot.last.model]
            run = (same or self._waiting)[0]
            self._waiting.remove(run)
            self._active[slot.submit(self._work, run, self._log(run))] = (slot, run)


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
    seen = {run.folder: _epoch(run) for run in todo}
    epochs = sum(run.recipe.schedule.epochs - seen[run.folder] for run in todo)
    jobs = Jobs(slots, _train, todo, lambda run: out / "logs" / f"{run.folder.name}.txt")
    with stop_signals() as stop_asked, WorkProgress(f"training {len(todo)} runs", epochs, "epochs") as progress:
        for ended in jobs:
            for run in (*jobs.running, *(run for run, _ in ended)):
                before, seen[run.folder] = seen[run.folder], max(seen[run.folder], _epoch(run))
                progress.advance(seen[run.folder] - before)
            for run, future in ended:
                said = _settle(run, future, outcome)
                count = outcome.trained + len(outcome.failed)
                progress.say(f"{run.folder.name}: {said} ({count} of {len(todo)} runs)")
            if stop_asked.is_set() and not jobs.is_done:
                jobs.stop()
    return outcome


def _settle(run: PlannedRun, future: Future[float], outcome: Outcome) -> str:
    """Take note of a run that has ended; how, in words."""
    try:
        top1 = future.result()
    except BrokenProcessPool:
        outcome.failed[run.folder.name] = "its process died, as when memory runs out"
    except (UserError, Stopped) as error:
        outcome.failed[run.folder.name] = str(error)
    except Exception as error:  # memory, a compiler, a kernel: its log has the traceback, the others go on
        said = str(error).strip().splitlines() or [""]
        outcome.failed[run.folder.name] = f"{type(error).__name__}: {said[0]}"
    else:
        outcome.trained += 1
        return f"top-1 {top1:.2f} %"
    return f"failed: {outcome.failed[run.folder.name]}"


def _epoch(run: PlannedRun) -> int:
    """Whole epochs that a run has done, as its log tells."""
    return int(read_run(run.folder).epoch) if run.folder.is_dir() else 0


def _begin(threads: int | None) -> None:
    """Make ready a process."""
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
    with open(log, "a", encoding="utf-8", opener=own_file) as said, redirect_stderr(said), redirect_stdout(said):
        try:
            return work(recipe, folder, weights, device)
        except Exception:
            traceback.print_exc()
            raise


def _train(recipe: Recipe, folder: Path, weights: Path | None, device: str) -> float:
    from illama.training import train

    start = None if has_checkpoint(folder) else weights  # a begun run has its weights
    return train(recipe, folder, device=device, init_from=start).scores["top1"]
