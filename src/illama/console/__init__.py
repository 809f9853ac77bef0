"""What a person watches: rich's console on stderr or stdout, which outlives its reader."""

from __future__ import annotations

import codecs
import contextlib
import os
import sys
from typing import IO, Any, cast

from rich.console import Console


class Terminal(Console):
    """A console. Whatever becomes of stderr (a pipe that ends, a closed terminal, a full disk), the work goes on;
    of stdout, whose reader wanted the result, the end is an error.

    Args:
        stderr: Whether it writes to stderr, else to stdout.
        piped_width: Characters of a line where there is no terminal; as rich takes it when None.
    """

    def __init__(self, *, stderr: bool = False, piped_width: int | None = None) -> None:
        super().__init__(file=cast("IO[str]", _Stderr()) if stderr else None, markup=False, highlight=False)
        if piped_width is not None and not self.is_terminal:
            self.width = piped_width

    def on_broken_pipe(self) -> None:
        """What rich would end the process for with exit code 1."""
        raise BrokenPipeError


class _Stderr:
    """sys.stderr as it is now, without its errors."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def __getattr__(self, name: str) -> Any:  # encoding, fileno, ...
        return getattr(sys.stderr, name)


def go_on_in_utf8() -> None:
    """Start the process anew in Python's UTF-8 mode where the locale is another, as LC_ALL=C with PYTHONUTF8=0.

    Names of files and classes are UTF-8 wherever they stand: in folders, recipes, JSON, other people's tables.
    """
    if os.name != "nt" and codecs.lookup(sys.getfilesystemencoding()).name != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def open_std_streams() -> None:
    """Give a process that was started without stdin, stdout or stderr a place for them that takes everything.

    Otherwise the next file that is opened gets the number of the one that is closed, and what libraries say goes there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - for the whole process
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
