"""How the process treats memory that it frees."""

from __future__ import annotations

import ctypes
import os
import sys

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
