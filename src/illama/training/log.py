"""What a run says of itself: metrics.jsonl (the source of truth), trackers, and the console."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID
from rich.text import Text

from illama.console import Terminal
from illama.console.progress import BAR_WIDTH, LINE_EVERY_S
from illama.console.text import duration, safe_lines
from illama.errors import UserError
from illama.system.files import own_file
from illama.training.run_folder import METRICS_FILE
from illama.training.trackers import TensorBoard, Tracker

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


class RunLog:
    """Writes one line per log point and per evaluation.

    Args:
        run_dir: The run's folder.
        keep_bytes: Length of an existing metrics.jsonl to keep: what a crash left after the checkpoint goes.
        step: Optimizer steps done, for TensorBoard to drop what came after.
        total_steps: Length of the run, for the progress bar.
        eval_every_steps: Steps between two evaluations, for the time that is left; None takes evaluations for a part
            of the steps.
        tracker: From `open_tracker`; takes every record, beside TensorBoard.
        before_writing: Called before each record; raises where the folder is not this run's any more.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        keep_bytes: int,
        step: int,
        total_steps: int,
        eval_every_steps: int | None = None,
        tracker: Tracker | None = None,
        before_writing: Callable[[], None] = lambda: None,
    ) -> None:
        self.console = Terminal(stderr=True)
        self._file = MetricsFile(run_dir / METRICS_FILE, keep_bytes)
        self._before_writing = before_writing
        self._total_steps, self._start_step = total_steps, step
        self._times_evaluations = eval_every_steps is not None
        self._left = TimeLeft(step, total_steps, eval_every_steps or total_steps)
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._last_line = time.monotonic()
        self._trackers: list[Tracker] = [] if tracker is None else [tracker]
        if self._file.missing:
            self.say(
                f"{METRICS_FILE} is {self._file.missing} bytes shorter than when the checkpoint was saved: the run "
                "goes on, its curves have a gap",
                style="yellow",
            )
        try:
            self._trackers.append(TensorBoard(run_dir, step))
        except Exception as error:
            self._warn_without(TensorBoard.name, error)

    @property
    def bytes_written(self) -> int:
        """Length of metrics.jsonl; so much of it is on the disk then, whatever happens to the machine."""
        return self._file.settle()

    def say(self, text: str, *, style: str | None = None) -> None:
        """One line for a person."""
        (self._bar.console if self._bar else self.console).print(
            safe_lines(text), style=style, highlight=False, markup=False, soft_wrap=True
        )

    def say_skipped(self, skipped: dict[str, str], what: str) -> None:
        """Name the number of unreadable images and the first of them; nothing where all could be read."""
        if skipped:
            where, why = next(iter(skipped.items()))
            text = f"{len(skipped)} unreadable {what} image(s) left out, the first: {where}: {why}"
            self.say(text, style="yellow")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl and hand it to the trackers.

        A tracker that fails is left out from then on, with a warning; metrics.jsonl has everything.

        Raises:
            ValueError: A value is NaN or infinite; nothing was written.
            UserError: The disk is full or the file cannot be written to; or what `before_writing` says.
        """
        self._before_writing()
        self._file.append(record)
        if record["kind"] == "eval" and self._times_evaluations:
            self._left.evaluation_done()
        for tracker in list(self._trackers):
            try:
                tracker.write(record)
            except Exception as error:
                self._trackers.remove(tracker)
                self._warn_without(tracker.name, error)

    def advance(self, step: int, summary: str | None = None) -> None:
        """A step is done.

        Args:
            step: Steps done.
            summary: At log points `illama.training.log.summary`: drawn beside the progress bar, or printed every
                `LINE_EVERY_S` at most where there is no terminal.
        """
        self._left.step_done(step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if summary:
                self._bar.update(self._task, summary=summary)
        elif summary and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._last_line = time.monotonic()
            left = duration(self._left.seconds() or 0.0)
            self.say(BETWEEN.join([f"step {step}/{self._total_steps}", summary, f"ETA {left}"]))

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Draw a progress bar where there is a terminal; closes files and trackers at the end."""
        failed = True
        try:
            if self.console.is_terminal:
                columns = BarColumn(bar_width=BAR_WIDTH), SummaryColumn(self.console, BAR_WIDTH + 2, self._left)
                self._bar = Progress(*columns, console=self.console)
                self._task = self._bar.add_task("", total=self._total_steps, completed=self._start_step, summary="")
                with self._bar:
                    yield
            else:
                yield
            failed = False
        finally:
            self._bar = None
            self._file.close()
            self._close_trackers(failed)

    def _close_trackers(self, failed: bool) -> None:
        for tracker in self._trackers:
            try:
                tracker.close(failed)
            except Exception as error:
                self._warn_without(tracker.name, error)

    def _warn_without(self, name: str, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        self.say(f"{name} failed, the run goes on without it (metrics.jsonl is complete): {reason}", style="yellow")


class NoLog:
    """A log for processes other than the first: says and writes nothing."""

    bytes_written = 0

    def say(self, text: str, *, style: str | None = None) -> None:
        """Nothing."""

    def say_skipped(self, skipped: dict[str, str], what: str) -> None:
        """Nothing."""

    def write(self, record: dict[str, Any]) -> None:
        """Nothing."""

    def advance(self, step: int, summary: str | None = None) -> None:
        """Nothing."""

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Nothing."""
        yield


Log = RunLog | NoLog


class MetricsFile:
    """metrics.jsonl: whole lines only, each handed to the system at once.

    Unbuffered: a process that is killed loses no line, and a line that did not fit on a full disk does not come back
    when the file is closed.

    Attributes:
        missing: Bytes short of `keep_bytes`, which somebody else took away.

    Args:
        path: The file; made if absent.
        keep_bytes: Length to cut it to. A line that was cut short goes as well.

    Raises:
        UserError: It cannot be written to.
    """

    def __init__(self, path: Path, keep_bytes: int) -> None:
        self._path = path
        try:
            self._file = open(path, "r+b", buffering=0, opener=own_file)  # noqa: SIM115 - it outlives this call
            kept = self._file.read(keep_bytes)
            self._length = kept.rfind(b"\n") + 1
            self.missing = keep_bytes - self._length
            self._cut()
        except OSError as error:
            raise self._complaint(error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one line, or leave the file as it is."""
        line = (json.dumps(record, allow_nan=False) + "\n").encode()
        written = 0
        try:
            while written < len(line):
                written += self._file.write(line[written:])
        except OSError as error:
            self._cut()
            raise self._complaint(error) from error
        self._length += len(line)

    def settle(self) -> int:
        """Wait until everything is on the disk; the length in bytes."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._complaint(error) from error
        return self._length

    def close(self) -> None:
        self._file.close()

    def _cut(self) -> None:
        self._file.truncate(self._length)
        self._file.seek(self._length)

    def _complaint(self, error: OSError) -> UserError:
        todo = "clear its place" if isinstance(error, FileExistsError) else "make room"
        return UserError(
            f"cannot write {self._path}: {error.strerror}; the last checkpoint is untouched: {todo}, "
            "then run the same command again"
        )
