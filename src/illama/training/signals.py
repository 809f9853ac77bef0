"""A clean end of training on SIGTERM and SIGINT; of every other command `system.interrupt` is."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from illama.system.interrupt import came

_PARENT = os.getppid()


@contextmanager
def stop_signals(*, patient: bool = False) -> Iterator[threading.Event]:
    """SIGTERM and SIGINT ask for a clean end; a second one ends at once. Only the main thread can listen.

    Args:
        patient: Whether a second one is ignored: a launcher passes on what the terminal has sent to all processes, and
            has its own way (SIGKILL) with those that take too long.
    """
    asked = threading.Event()
    if came() or (patient and _launcher_is_gone()):
        asked.set()
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


def _launcher_is_gone() -> bool:
    """Whether `torchrun` has ended before its processes; if it does so later, they get SIGTERM (Linux).

    Killed, it tells them nothing, and they would train on where nobody expects them. Of other launchers that is not
    asked: they may start processes from a thread that ends, which Linux takes for the launcher's end.
    """
    pr_set_pdeathsig = 1
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    return os.getppid() != _PARENT
