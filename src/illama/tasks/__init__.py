"""What is learned: the tasks that the one training loop knows, each by what its runs are judged by.

Importing this package loads no torch: a task's module is loaded when a run needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from illama.registry import Registry

if TYPE_CHECKING:
    from illama.recipes import Recipe
    from illama.tasks.task import Task


@dataclass(frozen=True)
class Score:
    """The one number that runs of a task are judged by.

    Attributes:
        key: Its name in metrics.jsonl: there it holds at the softness in force, with "_causal" behind it at softness 0,
            with "ema_" before it for the averaged weights.
        title: Its name for people.
        unit: What stands behind the number.
        higher_is_better: Its direction.
        least, most: The values that it can have.
    """

    key: str
    title: str
    unit: str = " %"
    higher_is_better: bool = True
    least: float = 0.0
    most: float = 100.0

    @property
    def causal_key(self) -> str:
        """Its name at softness 0."""
        return f"{self.key}_causal"

    def judged_key(self, ends_soft: bool) -> str:
        """The name of what decides which checkpoint is the best: at the softness that the run ends with."""
        return self.key if ends_soft else self.causal_key

    def is_better(self, value: float, than: float | None) -> bool:
        """Whether a value beats another one; anything beats None."""
        return than is None or (value > than if self.higher_is_better else value < than)

    def best(self, values: list[float]) -> float:
        """The best of some values."""
        return max(values) if self.higher_is_better else min(values)

    @property
    def label(self) -> str:
        """Its name and unit, for an axis: "top-1 (%)"."""
        return f"{self.title} ({self.unit.strip()})" if self.unit else self.title

    def shown(self, value: float) -> str:
        """A value for people: "97.22 %"."""
        return f"{value:.2f}{self.unit}"


@dataclass(frozen=True)
class TaskEntry:
    """A task as it is known before it is loaded.

    Attributes:
        score: What its runs are judged by.
        module: Holds it, a `Task`, as `TASK`.
    """

    score: Score
    module: str

    def load(self) -> Task:
        """The task itself."""
        return import_module(self.module).TASK


# By `task` of a recipe.
TASKS = Registry("task", {"classification": TaskEntry(Score("top1", "top-1"), "illama.tasks.classification")})


def task_of(recipe: Recipe) -> Task:
    """The task of a recipe.

    Raises:
        UserError: There is none of that name.
    """
    return TASKS[recipe.task].load()
