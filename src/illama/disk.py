"""What is written is on the disk, and not only on its way there."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path


def to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open a folder for this
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (is_folder and error.errno == errno.EINVAL):  # network file systems that know it for files only
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, each name on disk in the folder above it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        to_disk(path.parent)


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that does not wait for somebody to write into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that appears, or replaces the one of its name, once it is complete and on the disk.

    Args:
        path: The file.
        write: Writes it, to another name beside it; where it fails, nothing is left behind.

    Raises:
        OSError: As `write`, or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        write(partial)
        to_disk(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def utf8(text: str) -> bytes:
    """A text for a file; a byte of a file's name that is no text stands in it as \\udcXX, as JSON writes it."""
    return text.encode(errors="backslashreplace")
