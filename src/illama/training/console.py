"""What a person sees of a run: one line, as wide as there is room, with an honest guess of the time that is left."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

from illama.console.text import duration

BETWEEN = "  "  # separates the parts of a line
MEMORY_STEPS = 1000  # steps after which a step's time has lost most of its weight in the estimate


def summary(record: dict[str, Any], epochs: int) -> str:
    """A train record of metrics.jsonl for people: the parts in order of importance, `BETWEEN` between them.

    Args:
        record: Its keys; `mfu` and `memory_gb` may be None or absent.
        epochs: Epochs of the run.
    """
    parts = [
        f"epoch {record['epoch']:.1f}/{epochs}",
        f"loss {record['loss']:.3f}",
        f"{record['images_per_s']:.0f} images/s",
        f"data wait {record['data_wait']:.0%}".replace("%", " %"),
    ]
    if record.get("mfu") is not None:
        parts.append(f"MFU {100 * record['mfu']:.0f} %")
    if record.get("memory_gb") is not None:
        parts.append(f"{record['memory_gb']:.1f} GB")
    return BETWEEN.join([*parts, f"lr {record['lr']:.1e}", f"softness {record['softness']:.2f}"])


def fitted(text: str, last: str, width: int) -> str:
    """A line no wider than `width`: parts go from the right until the rest and `last` fit; `last` goes at the very end.

    Args:
        text: Parts with `BETWEEN` between them.
        last: One more part, at the right end; may be empty.
        width: Characters.
    """
    parts = text.split(BETWEEN)
    for kept in range(len(parts), 0, -1):
        line = BETWEEN.join([*parts[:kept], *([last] if last else [])])
        if len(line) <= width:
            return line
    return parts[0][:width]


class TimeLeft:
    """Guesses the seconds until the end from this sitting's steps and evaluations.

    Steps and evaluations are timed apart: a sitting that begins just before an evaluation would otherwise take all
    steps for as slow as that one. The first step of a sitting, which may compile, counts only until there is a second
    one. Before the first evaluation of a sitting evaluations count as nothing.

    Args:
        step: Steps done before this sitting.
        total_steps: Steps of the run.
        eval_every_steps: Steps between two evaluations, the last step being followed by one in any case.
    """

    def __init__(self, step: int, total_steps: int, eval_every_steps: int) -> None:
        self._step, self._total_steps, self._eval_every_steps = step, total_steps, eval_every_steps
        self._at = time.monotonic()
        self._steps = self._steps_s = 0.0
        self._made = 0
        self._evaluations, self._evaluations_s = 0, 0.0

    def step_done(self, step: int) -> None:
        """A step is done, `step` in all."""
        now = time.monotonic()
        if self._made == 1:
            self._steps = self._steps_s = 0.0
        fade = 1 - 1 / MEMORY_STEPS
        self._steps, self._steps_s = fade * self._steps + step - self._step, fade * self._steps_s + now - self._at
        self._made += 1
        self._step, self._at = step, now

    def evaluation_done(self) -> None:
        """An evaluation that followed the last step is done."""
        now = time.monotonic()
        self._evaluations += 1
        self._evaluations_s += now - self._at
        self._at = now

    def seconds(self) -> float | None:
        """The guess; None before the first step of the sitting."""
        if not self._steps:
            return None
        steps_s = self._steps_s / self._steps * (self._total_steps - self._step)
        if not self._evaluations:
            return steps_s
        return steps_s + self._evaluations_s / self._evaluations * self._evaluations_left()

    def _evaluations_left(self) -> int:
        whole = self._total_steps // self._eval_every_steps - self._step // self._eval_every_steps
        return whole + (self._step < self._total_steps and self._total_steps % self._eval_every_steps > 0)


class SummaryColumn(ProgressColumn):
    """The line beside the bar, fitted to the terminal as it is now: the task's field `summary` and the time left.

    Args:
        console: The terminal.
        taken: Characters beside the line.
        left: The guess.
    """

    def __init__(self, console: Console, taken: int, left: TimeLeft) -> None:
        super().__init__()
        self._console, self._taken, self._left = console, taken, left

    def render(self, task: Task) -> Text:
        """The summary of the last log point, before the first one the step."""
        seconds = self._left.seconds()
        text = task.fields["summary"] or f"step {task.completed:.0f}/{task.total:.0f}"
        last = "" if seconds is None else f"ETA {duration(seconds)}"
        return Text(fitted(text, last, self._console.width - self._taken), no_wrap=True)
