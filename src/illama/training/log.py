"""What a run says of itself: metrics.jsonl (the source of truth), trackers, and the console."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID

from illama.console import Terminal
from illama.console.progress import BAR_WIDTH, LINE_EVERY_S
from illama.console.text import duration, safe_lines
from illama.errors import UserError
from illama.system.files import own_file
from illama.training.console import BETWEEN, SummaryColumn, TimeLeft
from illama.training.run_folder import METRICS_FILE
from illama.training.trackers import TensorBoard, Tracker


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
            summary: At log points `illama.training.console.summary`: drawn beside the progress bar, or printed every
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
