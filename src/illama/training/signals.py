"""A clean end on SIGTERM and SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[threading.Event]:
    """SIGTERM and SIGINT ask for a clean end; a second one ends at once. Only the main thread can listen.

    Args:
        patient: Whether a second one is ignored: a launcher passes on what the terminal has sent to all processes, and
            has its own way (SIGKILL) with those that take too long.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        if asked.is_set() and not patient:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
