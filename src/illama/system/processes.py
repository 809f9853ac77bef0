"""What a process is told when it starts, and what a signal does to it.

It is told how to treat memory, to repeat its products, to end with its parent. A signal ends a command that has nothing
to save in one line, from its first moment on.

SIGTERM and SIGINT raise `Interrupted` in the main thread, so that what is open is closed and half-written files go. No
import is broken by it: C++ that calls Python while a module is set up (`import torch` does) has no answer to an
exception and aborts the process. An import that comes before there is anything to close ends the process at once;
another one ends first.

While a run trains, `stop_signals` listens instead: a run ends with a save. This module imports nothing heavy: it is the
first that runs.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names, from glibc's malloc.h
_GIB = 1 << 30
STOPPED, INTERRUPTED = 75, 130  # exit codes, see illama.cli.main
_GO_ON = ("train", "quickstart", "reproduce")  # the same command goes on: a scheduler may start it again
_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_LOOK_AGAIN_S = 0.02
_came: int | None = None
_begun = False  # the command itself; before, modules are imported and nothing is open
_PARENT = os.getppid()  # another one later: the starter is gone


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones instead of giving it back to the system.

    Each layer frees and allocates megabytes. By default glibc maps them anew, and the system clears every page:
    on two CPU cores that is 10 to 25 % of a prediction (docs/kernels.md). Other systems and C libraries stay as
    they are, and so does a process in which the user has set glibc's own environment variables.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, _GIB)
        mallopt(_TRIM_THRESHOLD, 2 * _GIB - 1)


def ask_for_repeatable_products() -> None:
    """Have cuBLAS give the same bits every time, unless the environment says how it works: it looks there once, before
    the first product of the process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def end_with_parent() -> None:
    """From now on this process ends as soon as the one that started it has: a killed parent cannot say so."""
    threading.Thread(target=_wait_for_its_end, daemon=True).start()


def _wait_for_its_end() -> None:
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGINT came."""


def listen() -> None:
    """From now on the two signals raise `Interrupted`; one that whoever started this process has it ignore does not."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _NUMBERS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _interrupt)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Inside, the two signals raise `Interrupted`."""
    global _came, _begun
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _begun = True
    before = {number: signal.getsignal(number) for number in _NUMBERS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not installed from Python
                signal.signal(number, handler)
        if before[signal.SIGTERM] is not _interrupt:
            _came = None


def deaf() -> None:
    """From now on the two signals do nothing: the last words are being said, or the process is about to end."""
    if threading.current_thread() is threading.main_thread():
        for number in _NUMBERS:
            signal.signal(number, signal.SIG_IGN)


def came() -> bool:
    """Whether such a signal came. Its exception may have got lost in code that takes all of them for its own."""
    return _came is not None


def last_words(words: Sequence[str]) -> int:
    """Say in one line that a signal ended the command.

    Args:
        words: What was typed after `illama`.

    Returns:
        The exit code: 75 for SIGTERM where the same command goes on, else 130.
    """
    goes_on = _came == signal.SIGTERM and bool(words) and (words[0] in _GO_ON or {"launch", "train"} <= set(words))
    said = "stopped by a signal; run the same command again to go on" if goes_on else "interrupted"
    if os.environ.get("RANK", "0") == "0":  # of several processes, which all stop, one says so
        with contextlib.suppress(OSError, ValueError, AttributeError):  # nobody reads
            print(f"illama: {said}", file=sys.stderr, flush=True)
    return STOPPED if goes_on else INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _came
    _came = _came or number
    if not _imports(frame):
        raise Interrupted
    if not _begun:
        os._exit(last_words(sys.argv[1:]))
    # Not threading's own: this may have interrupted what holds its lock.
    _thread.start_new_thread(_send_again, (number,))


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _send_again(number: int) -> None:
    time.sleep(_LOOK_AGAIN_S)
    if signal.getsignal(number) is _interrupt:
        os.kill(os.getpid(), number)


def _forget_in_child() -> None:
    """A process that was forked is ended by its parent, and has no line to say."""
    for number in _NUMBERS:
        if signal.getsignal(number) is _interrupt:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


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
    import ctypes

    pr_set_pdeathsig = 1
    if sys.platform != "linux" or "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    return os.getppid() != _PARENT
