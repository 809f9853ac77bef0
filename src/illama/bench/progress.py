"""Progress of a benchmark on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from illama.console import Terminal
from illama.console.text import duration
from illama.training.log import QUIET_SECONDS


class BenchProgress:
    """Counts groups of cases; use as a context.

    Args:
        groups: How many there will be.
    """

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._done = 0
        self._title = ""
        self._console = Terminal(stderr=True)
        self._started = self._last_line = time.monotonic()
        self._bar = (
            Progress(
                TextColumn("{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=8),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[doing]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
                console=self._console,
                transient=True,
            )
            if self._console.is_terminal
            else None
        )
        self._task = self._bar.add_task("", total=groups, doing="") if self._bar else None

    def __enter__(self) -> BenchProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def begin(self, title: str) -> None:
        """A group starts."""
        self._title = title
        self.tell(0.0, "building")

    def end(self) -> None:
        """The group is done."""
        self._done += 1
        self.tell(0.0, "")

    def tell(self, share: float, doing: str) -> None:
        """What happens now, and how much of the group is done (0 to 1)."""
        done = self._done + share
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, description=self._title, doing=doing)
        elif time.monotonic() - self._last_line > QUIET_SECONDS:
            self._last_line = now = time.monotonic()
            left = f"  ETA {duration((self._groups - done) * (now - self._started) / done)}" if done else ""
            text = f"{self._title}: {doing}  {100 * done / self._groups:.0f} %{left}"
            self._console.print(text, highlight=False, soft_wrap=True)
