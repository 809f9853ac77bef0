"""Trains the runs of a plan, several at a time on several devices, or measures how long they would take."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from illama.checkpoint.folder import has_checkpoint
from illama.console.progress import WorkProgress
from illama.device import autocast, resolve_device
from illama.errors import Stopped, UserError
from illama.recipes import Recipe
from illama.reproduce.study import PlannedRun
from illama.system.files import own_file
from illama.system.processes import cpu_count, end_with_parent, stop_signals
from illama.training.loop import Run, train
from illama.training.runs import read_run

LOOK_EVERY_S = 0.5  # how often the progress of the runs is read
_SPAWN = multiprocessing.get_context("spawn")  # not forked: CUDA does not survive that
_UNCOUNTED = 2  # first steps of a measurement, which compile and warm up
_LEAST = 3  # steps that are timed, and for so long at least:
TIMED_S = 3.0

Work = Callable[[Recipe, Path, Path | None, str], Any]  # (recipe, run folder, start weights, device)


class Ended(NamedTuple):
    """What became of the work on a run: its value, or the problem; a run that was stopped has saved."""

    value: Any = None
    problem: str | None = None
    is_stopped: bool = False


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
    """A process of its own that trains one run after the other on one device; it begins with the first.

    Args:
        device: Its name.
        threads: Threads that it computes with; None leaves torch's choice.

    Attributes:
        pipe: Readable when the process has ended a run, or itself.
        last: What it had to do last.
    """

    pipe: Connection

    def __init__(self, device: str, threads: int | None = None) -> None:
        self.device = device
        self.last: Recipe | None = None
        self._threads = threads
        self._process: SpawnProcess | None = None

    def submit(self, work: Work, run: PlannedRun, log: Path) -> None:
        """Have the process do the work, with what it says going to a file.

        Networks compiled for another architecture are forgotten; the seeds of one row share theirs.
        """
        anew = self.last is not None and run.recipe.model != self.last.model
        self.last = run.recipe
        if not self.is_alive:
            self.pipe, theirs = _SPAWN.Pipe()
            self._process = _SPAWN.Process(target=_serve, args=(theirs, self._threads))
            resource_tracker.ensure_running()  # started inside, it would let the signal through again
            with _kept_from_new_processes(signal.SIGINT):  # the terminal's Ctrl-C is for the parent to pass on, once
                self._process.start()
            theirs.close()
        with suppress(OSError):  # it has just died, which `wait` finds
            self.pipe.send((anew, work, run.recipe, run.folder, run.weights, self.device, log))

    @property
    def is_alive(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and self._process.is_alive()

    def wait(self) -> Ended:
        """What became of the work, when it has ended or the process has died."""
        try:
            while True:
                alive = self.is_alive  # before the look: what it said last counts
                if self.pipe.poll(LOOK_EVERY_S if alive else 0):
                    return Ended(*self.pipe.recv())
                if not alive:
                    break
        except (EOFError, OSError):
            pass
        self.close(now=True)
        return Ended(problem="its process died, as when memory runs out")

    def terminate(self) -> None:
        """Ask for the end of the run, which saves."""
        if self._process is not None:
            self._process.terminate()

    def close(self, *, now: bool = False) -> None:
        """End the process when it has done its work, or now."""
        if self._process is None or self._process.pid is None:
            return
        if now:
            self._process.kill()
        self.pipe.close()  # which ends it
        self._process.join()


def _serve(pipe: Connection, threads: int | None) -> None:
    """The process of a slot."""
    end_with_parent()  # a run that ends like this goes on from its last checkpoint
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    with suppress(EOFError, OSError):  # nobody has more to do, or listens
        while True:
            anew, *arguments = pipe.recv()
            if anew:
                torch.compiler.reset()
            pipe.send(tuple(attempt(*arguments)))


def attempt(work: Work, recipe: Recipe, folder: Path, weights: Path | None, device: str, log: Path) -> Ended:
    """Do the work, with everything that is said going to the log, the traceback of an error too."""
    try:
        with open(log, "a", encoding="utf-8", opener=own_file) as said, redirect_stderr(said), redirect_stdout(said):
            try:
                return Ended(work(recipe, folder, weights, device))
            except Exception:
                traceback.print_exc()
                raise
    except (UserError, Stopped) as error:
        return Ended(problem=str(error), is_stopped=isinstance(error, Stopped))
    except Exception as error:  # memory, a compiler, a kernel: the other runs go on
        first_line = (str(error).strip().splitlines() or [""])[0]
        return Ended(problem=f"{type(error).__name__}: {first_line}")


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
    is_done = False
    try:
        yield slots
        is_done = True
    finally:
        for slot in slots:
            slot.close(now=not is_done)


class Jobs:
    """Runs that go through the slots, one after the other in each; iterate to wait for them.

    Every `LOOK_EVERY_S` the iteration gives the runs that have ended since, with what became of them.

    Args:
        slots: Where they go.
        work: What is done with each of them in the slot's process.
        runs: The runs, in order; a slot takes one of the network that it had last before another.
        log: What a run says goes to `log(run)`.
    """

    def __init__(
        self, slots: Sequence[Slot], work: Work, runs: Iterable[PlannedRun], log: Callable[[PlannedRun], Path]
    ) -> None:
        self._slots, self._work, self._log = slots, work, log
        self._waiting = list(runs)
        self._active: dict[Slot, PlannedRun] = {}

    @property
    def is_done(self) -> bool:
        """Whether nothing waits or runs."""
        return not (self._waiting or self._active)

    @property
    def running(self) -> list[PlannedRun]:
        """The runs that are in a slot now."""
        return list(self._active.values())

    def __iter__(self) -> Iterator[list[tuple[PlannedRun, Ended]]]:
        while not self.is_done:
            for slot in self._slots:
                if slot not in self._active and self._waiting:
                    self._active[slot] = run = self._next(slot.last)
                    slot.submit(self._work, run, self._log(run))
            ready = wait([slot.pipe for slot in self._active], LOOK_EVERY_S)
            ended = [slot for slot in self._active if slot.pipe in ready or not slot.is_alive]
            yield [(self._active.pop(slot), slot.wait()) for slot in ended]

    def _next(self, last: Recipe | None) -> PlannedRun:
        same = [run for run in self._waiting if last is not None and run.recipe.model == last.model]
        run = (same or self._waiting)[0]
        self._waiting.remove(run)
        return run

    def stop(self) -> NoReturn:
        """Have all that are running save, and leave."""
        for slot in self._active:
            slot.terminate()
        saved = sum(slot.wait().is_stopped for slot in self._active)
        at_once = len(self._active) - saved  # a run that had not begun to listen, or has just finished
        others = f", {at_once} ended without" if at_once else ""
        raise Stopped(f"stopped; {saved} running run(s) saved{others}; run the same command again to continue")


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
    todo = [run for run in runs if not run.is_finished]
    outcome = Outcome(finished_before=len(runs) - len(todo))
    seen = {run.folder: _epoch(run) for run in todo}
    epochs = sum(run.recipe.schedule.epochs - seen[run.folder] for run in todo)
    jobs = Jobs(slots, _train, todo, lambda run: out / "logs" / f"{run.folder.name}.txt")
    with stop_signals() as stop_asked, WorkProgress(f"training {len(todo)} runs", epochs, "epochs") as progress:
        for ended in jobs:
            for run in (*jobs.running, *(run for run, _ in ended)):
                before, seen[run.folder] = seen[run.folder], max(seen[run.folder], _epoch(run))
                progress.advance(seen[run.folder] - before)
            for run, (top1, problem, _) in ended:
                if problem is None:
                    outcome.trained += 1
                else:
                    outcome.failed[run.folder.name] = problem
                said = f"top-1 {top1:.2f} %" if problem is None else f"failed: {problem}"
                count = outcome.trained + len(outcome.failed)
                progress.say(f"{run.folder.name}: {said} ({count} of {len(todo)} runs)")
            if stop_asked.is_set() and not jobs.is_done:
                jobs.stop()
    return outcome


def _epoch(run: PlannedRun) -> int:
    """Whole epochs that a run has done, as its log tells."""
    return int(read_run(run.folder).epoch) if run.folder.is_dir() else 0


def _train(recipe: Recipe, folder: Path, weights: Path | None, device: str) -> float:
    start = None if has_checkpoint(folder) else weights  # a begun run has its weights
    return train(recipe, folder, device=device, init_from=start).scores["top1"]


@dataclass(frozen=True)
class Pace:
    """What a short measurement says of a whole run, in seconds.

    Attributes:
        start_s: Reading the data, building the network, the first steps.
        step_s: One optimizer step.
        evaluations_s: All evaluations.
        steps: Optimizer steps of the run.
    """

    start_s: float
    step_s: float
    evaluations_s: float
    steps: int

    @property
    def total_s(self) -> float:
        """The whole run."""
        return self.start_s + self.steps * self.step_s + self.evaluations_s


def measure_pace(recipe: Recipe, folder: Path, weights: Path | None, device: str) -> Pace:
    """Time the beginning of a run, as the work of a slot; nothing is written.

    Raises:
        UserError: Recipe, data or device cannot be used.
    """
    begun = time.perf_counter()
    run = Run(recipe, Path(recipe.name), resolve_device(device), None)
    run.state.progress.step = run.parts.schedules.total_steps // 2  # a softness and a drop path of the middle
    batches = run.parts.train_loader.batches(run.state.progress.step, run.parts.schedules)
    try:
        for _ in range(_UNCOUNTED):
            run._step(batches)
        run.state.mean_loss()  # waits for the device
        warm = time.perf_counter()
        count = 0
        while count < _LEAST or time.perf_counter() - warm < TIMED_S:
            run._step(batches)
            count += 1
            run.guard.first_bad_step()
        step_s = (time.perf_counter() - warm) / count
    finally:
        batches.close()
    total = run.parts.schedules.total_steps
    return Pace(warm - begun, step_s, _evaluations(run), total)


def _evaluations(run: Run) -> float:
    """All evaluations, from one batch that has been read; while the mask is soft each is made twice."""
    import torch

    loader = run.validation.loader
    images = next(iter(loader)).images
    run.parts.model.eval()
    with torch.inference_mode(), autocast(run.device, run.precision):
        run.parts.model(images).sum().item()  # warms up
        begun = time.perf_counter()
        run.parts.model(images).sum().item()
    batch_s = time.perf_counter() - begun
    epochs, every = run.parts.recipe.schedule.epochs, run.parts.recipe.train.eval_every_epochs
    per_epoch = run.parts.schedules.steps_per_epoch
    ends = [*range(every, epochs, every), epochs]
    passes = sum(2 if run.parts.schedules.softness(end * per_epoch - 1) > 0 else 1 for end in ends)
    return batch_s * len(loader) * passes


@dataclass(frozen=True)
class Estimate:
    """A run and its pace as measured on a run of the same kind, or why there is none; neither for a finished run."""

    run: PlannedRun
    pace: Pace | None = None
    problem: str | None = None

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.pace is None and self.problem is None


def estimate(runs: Sequence[PlannedRun], slots: Sequence[Slot], out: Path) -> list[Estimate]:
    """Measure each kind of run for some seconds, as many at a time as would train at a time.

    Args:
        runs: The plan.
        slots: Where they would be trained.
        out: Folder of the study; only its folder `logs` is written to.
    """
    kinds: dict[str, PlannedRun] = {}
    for run in runs:
        if not run.is_finished:
            kinds.setdefault(_kind(run), run)
    measured: dict[str, Ended] = {}
    with WorkProgress(f"measuring {len(kinds)} kinds of runs", len(kinds), "kinds") as progress:
        for ended in Jobs(slots, measure_pace, kinds.values(), lambda run: out / "logs" / "dry-run.txt"):
            measured |= {_kind(run): result for run, result in ended}
            progress.advance(len(ended))
    results = [measured.get(_kind(run), Ended()) for run in runs]
    return [Estimate(run, result.value, result.problem) for run, result in zip(runs, results, strict=True)]


def _kind(run: PlannedRun) -> str:
    """Runs that differ by their seeds take equally long."""
    return json.dumps(run.recipe.to_dict() | {"seed": None}, sort_keys=True)
