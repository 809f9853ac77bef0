"""Files that others made, opened to be read: regular ones of a bounded size.

A pipe would be waited for, a device has no end, and a sparse file of any size costs its maker nothing. Links are
followed: who names a file, or lists it in a data set, means what it leads to.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from illama.system.files import open_at_once

LARGEST = 1 << 30  # bytes of a file that is read whole: more is no description, table or picture


def open_given(path: str | os.PathLike[str], largest: int = LARGEST) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: Its name.
        largest: How many bytes it may have.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, larger than that, or its name is none (it holds a NUL).
    """
    file: BinaryIO = open(path, "rb", opener=open_at_once)  # noqa: SIM115 - it is the caller's
    status = os.fstat(file.fileno())
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and status.st_size <= largest:
        return file
    file.close()
    too_many = f"{status.st_size:,} bytes are too many (allowed: up to {largest:,})"
    raise ValueError(too_many if is_regular else "it is no regular file")


def read_given(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The content of a file; as `open_given`."""
    with open_given(path, largest) as file:
        return file.read(largest)


def read_given_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """The content of a file in UTF-8, with or without a byte order mark; as `open_given`.

    Raises:
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_given(path, largest).decode("utf-8-sig")


def why(error: OSError | ValueError) -> str:
    """What is wrong with a file that cannot be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return getattr(error, "strerror", None) or str(error)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a regular file; a name that none can have (too long, with a NUL) has none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path as a shell reads it: with ~ for a home; a name after ~ that is nobody's stays as it is."""
    return Path(os.path.expanduser(path))
