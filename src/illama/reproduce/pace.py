"""How long a plan would take, from a few steps and one evaluation batch of each kind of run; nothing is written."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from illama.console.progress import WorkProgress
from illama.device import resolve_device
from illama.recipes import Recipe
from illama.reproduce.runner import Jobs, Slot
from illama.training.loop import Run

if TYPE_CHECKING:
    from illama.recipes import Recipe
    from illama.reproduce.plan import PlannedRun

_UNCOUNTED = 2  # first steps, which compile and warm up
_LEAST = 3  # steps that are timed


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


def measure_pace(recipe: Recipe, device: str | None = None, seconds: float = 3.0) -> Pace:
    """Time the beginning of a run.

    Args:
        recipe: What would be trained.
        device: Where.
        seconds: How long steps are timed.

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
        while count < _LEAST or time.perf_counter() - warm < seconds:
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

    from illama.device import autocast

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
    """A run and what is known of its time.

    Attributes:
        run: The run.
        pace: As measured on a run of the same kind; None where it failed.
        is_finished: Whether nothing is left to do.
        why: Why there is no pace.
    """

    run: PlannedRun
    pace: Pace | None
    is_finished: bool
    why: str = ""


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
    paces: dict[str, Pace | str] = {}
    with WorkProgress(f"measuring {len(kinds)} kinds of runs", len(kinds), "kinds") as progress:
        for ended in Jobs(slots, _measure, kinds.values(), lambda run: out / "logs" / "dry-run.txt"):
            for run, future in ended:
                try:
                    paces[_kind(run)] = future.result()
                except Exception as error:
                    paces[_kind(run)] = str(error)
                progress.advance(1)
    return [_estimate(run, paces.get(_kind(run))) for run in runs]


def _estimate(run: PlannedRun, pace: Pace | str | None) -> Estimate:
    if pace is None:
        return Estimate(run, None, is_finished=True)
    return Estimate(run, None, False, pace) if isinstance(pace, str) else Estimate(run, pace, False)


def _kind(run: PlannedRun) -> str:
    """Runs that differ by their seeds take equally long."""
    tree = run.recipe.to_dict()
    del tree["seed"]
    return json.dumps(tree, sort_keys=True)


def _measure(recipe: Recipe, folder: Path, weights: Path | None, device: str) -> Pace:
    return measure_pace(recipe, device)
