"""How long a plan would take, from a short measurement of each kind of run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from illama.data.progress import WorkProgress
from illama.reproduce.runner import Jobs, Slot

if TYPE_CHECKING:
    from illama.recipes import Recipe
    from illama.reproduce.plan import PlannedRun
    from illama.training.probe import Pace


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
    from illama.training.probe import measure_pace

    return measure_pace(recipe, device)
