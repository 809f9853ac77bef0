"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from illama.console import Terminal
from illama.console.text import duration, safe_lines

PATIENCE_S = 2.0  # work that ends before this shows nothing
LINE_EVERY_S = 10.0  # between two lines where no bar can be drawn
BAR_WIDTH = 8


class WorkProgress:
    """Counts images, bytes, epochs or parts; use as a context. Safe from several threads.

    Args:
        what: What is done, for people ("writing shards"); `tell` may change it.
        total: How much there is.
        unit: What is counted: "images", "epochs", ...; "bytes" are shown as kB, MB, GB. None counts parts, of which
            `tell` says what happens in them.
    """

    def __init__(self, what: str, total: int, unit: str | None = "images") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0.0
        self._lock = threading.Lock()
        self._console = Terminal(stderr=True)
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=BAR_WIDTH),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)),
            console=self._console,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, doing="")

    def __enter__(self) -> WorkProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.live.is_started:  # rich ends a line otherwise
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line for a person, above the bar."""
        self._console.print(safe_lines(text), soft_wrap=True)

    def advance(self, amount: float) -> None:
        """So much more is done."""
        with self._lock:
            self._done += amount
            if self._unit == "bytes":
                self._show(self._done, f"{decimal(int(self._done))} of {decimal(self._total)}")
            else:
                self._show(self._done, f"{self._done:,.0f} of {self._total:,} {self._unit or ''}".rstrip())

    def tell(self, share: float, doing: str, what: str | None = None) -> None:
        """What happens now.

        Args:
            share: How much of the present part is done, 0 to 1.
            doing: In a few words.
            what: The present part, where it is another one than before.
        """
        with self._lock:
            self._what = what or self._what
            self._show(self._done + share, doing)

    def _show(self, done: float, doing: str) -> None:
        now = time.monotonic()
        parts = self._unit is None  # each may take minutes before it says more, so it is shown at once
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, description=self._what, doing=doing)
            if not self._bar.live.is_started and (parts or now - self._started > PATIENCE_S):
                self._bar.start()
        elif now - self._last_line > LINE_EVERY_S and (parts or 0 < done < self._total):
            self._last_line = now
            left = f", ETA {duration((self._total - done) * (now - self._started) / done)}" if done else ""
            self.say(f"{self._what}: {doing}, {100 * done / self._total:.0f} %{left}")
