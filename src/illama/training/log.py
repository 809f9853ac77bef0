"""What a run says of itself: metrics.jsonl (the source of truth), TensorBoard, and the console."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from illama.errors import UserError
from illama.training.run_folder import METRICS_FILE

QUIET_SECONDS = 10.0  # least time between two lines where no progress bar can be drawn


class RunLog:
    """Writes one line per log point and per evaluation.

    Args:
        run_dir: The run's folder.
        keep_bytes: Length of an existing metrics.jsonl to keep: what a crash left after the checkpoint goes.
        step: Optimizer steps done, for TensorBoard to drop what came after.
        total_steps: Length of the run, for the progress bar.
    """

    def __init__(self, run_dir: Path, *, keep_bytes: int, step: int, total_steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.console = Console(stderr=True)
        path = run_dir / METRICS_FILE
        path.touch()
        self._file = path.open("r+", encoding="utf-8")
        self._file.truncate(keep_bytes)
        self._file.seek(0, 2)
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=step)
        self._total_steps = total_steps
        self._start_step = step
        self._bar: Progress | None = None
        self._task: Any = None
        self._started = self._last_line = time.monotonic()

    @property
    def bytes_written(self) -> int:
        """Length of metrics.jsonl."""
        return self._file.tell()

    def say(self, text: str, *, style: str | None = None) -> None:
        """One line for a person."""
        (self._bar.console if self._bar else self.console).print(text, style=style, highlight=False, soft_wrap=True)

    def say_skipped(self, skipped: dict[str, str], what: str) -> None:
        """Name the number of unreadable images and the first of them; nothing where all could be read."""
        if skipped:
            where, why = next(iter(skipped.items()))
            text = f"{len(skipped)} unreadable {what} image(s) left out, the first: {where}: {why}"
            self.say(text, style="yellow")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl and its numbers to TensorBoard."""
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"cannot write {self._file.name}: {error.strerror}; the last checkpoint is untouched: "
                "make room, then run the same command again"
            ) from error
        for key, value in record.items():
            if isinstance(value, int | float) and key not in ("step", "kind"):
                self._board.add_scalar(f"{record['kind']}/{key}", value, record["step"])

    def advance(self, step: int, summary: str | None = None) -> None:
        """Move the progress bar; `summary` (at log points) is drawn beside it, or printed where there is no bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if summary:
                self._bar.update(self._task, summary=summary)
        elif summary and time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = time.monotonic()
            left = (self._total_steps - step) * (self._last_line - self._started) / (step - self._start_step)
            self.say(f"step {step}/{self._total_steps}  {summary}  ETA {eta(left)}")

    @contextmanager
    def progress(self) -> Iterator[None]:
        """Draw a progress bar where there is a terminal; closes the files at the end."""
        try:
            if self.console.is_terminal:
                self._bar = Progress(
                    TextColumn("step {task.completed}/{task.total}"),
                    BarColumn(bar_width=24),
                    TimeElapsedColumn(),
                    TextColumn("ETA"),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[summary]}"),
                    console=self.console,
                )
                self._task = self._bar.add_task("", total=self._total_steps, completed=self._start_step, summary="")
                with self._bar:
                    yield
            else:
                yield
        finally:
            self._bar = None
            self._file.close()
            self._board.close()


def eta(seconds: float) -> str:
    """A duration as a person writes it: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
