"""Progress of long work, on stderr: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from illama.console import Terminal
from illama.console.text import duration, safe_lines

PATIENCE_S = 2.0  # work that ends before this shows nothing
LINE_EVERY_S = 10.0  # between two lines where no bar can be drawn


class WorkProgress:
    """Counts images, bytes or epochs; use as a context. Safe from several threads.

    Args:
        what: What is done, for people ("writing shards").
        total: How much there is.
        unit: What is counted: "images", "epochs", ...; "bytes" are shown as kB, MB, GB.
    """

    def __init__(self, what: str, total: int, unit: str = "images") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._lock = threading.Lock()
        self._console = Terminal(stderr=True)
        self._started = self._last_line = time.monotonic()
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            if self._console.is_terminal
            else None
        )
        self._task = self._bar.add_task(what, total=total, amount="") if self._bar else None

    def __enter__(self) -> WorkProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """One line for a person, above the bar."""
        self._console.print(safe_lines(text), highlight=False, markup=False, soft_wrap=True)

    def advance(self, amount: int) -> None:
        """So much more is done."""
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=self._done, amount=self._amount())
                if not self._bar.live.is_started and now - self._started > PATIENCE_S:
                    self._bar.start()
            elif now - self._last_line > LINE_EVERY_S and 0 < self._done < self._total:
                self._last_line = now
                left = duration((self._total - self._done) * (now - self._started) / self._done)
                text = f"{self._what}: {self._amount()}, {100 * self._done / self._total:.0f} %, ETA {left}"
                self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _amount(self) -> str:
        if self._unit == "bytes":
            return f"{decimal(self._done)} of {decimal(self._total)}"
        return f"{self._done:,} of {self._total:,} {self._unit}"
