"""What a process is told when it starts: how to treat memory, to repeat its products, to end with its parent."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names, from glibc's malloc.h
_GIB = 1 << 30


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones instead of giving it back to the system.

    Each layer frees and allocates megabytes. By default glibc maps them anew, and the system clears every page:
    on two CPU cores that is 10 to 25 % of a prediction (docs/kernels.md). Other systems and C libraries stay as
    they are, and so does a process in which the user has set glibc's own environment variables.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
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
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
