"""How numbers, and texts of unknown origin, are said to people; JSON, also what others wrote or a crash left behind."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from illama.system.files import read_given

# Unicode's categories that a terminal may act upon, or that change the order of what is read: controls, format and
# direction marks, halves of surrogate pairs (bytes of a name that are no text), line and paragraph separators.
_UNSHOWN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_LONGEST = 300  # characters of a name


def duration(seconds: float) -> str:
    """A duration as a person writes it: 0.4 s, 45 s, 12 min, 3.4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def is_utf8(text: str) -> bool:
    """Whether a text came from UTF-8: a byte of a name that is none stands in it as half of a surrogate pair."""
    return not any(0xD800 <= ord(letter) <= 0xDFFF for letter in text)


def shown(name: object, longest: int = _LONGEST) -> str:
    """A file's or a class's name, on one line: what could move the cursor or the line stands as its code.

    Args:
        name: Anything that a file, a folder or a data set is called.
        longest: Characters; of a longer one the middle is left out.
    """
    text = str(name)
    if not text.isprintable():
        text = "".join(_code(ord(letter)) if _is_unshown(letter) else letter for letter in text)
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}"


def safe_lines(text: str) -> str:
    """A text of several lines as a terminal may have it."""
    return "\n".join(shown(line, len(line) * 10 + 1) for line in text.split("\n"))


def as_message(text: str) -> str:
    """A message as a terminal may have it; lines that follow the first are indented.

    So no name that holds a line's end can pass for another message.
    """
    first, *others = safe_lines(text).split("\n")
    return "\n".join([first, *(line if line.startswith(" ") or not line else f"  {line}" for line in others)])


def escaped(text: str, code: Callable[[int], str]) -> str:
    """A text of lines in which what a terminal may act upon stands as its code; line ends stay.

    Args:
        text: Any.
        code: From a letter's number to what is to stand for it.
    """
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(code(ord(letter)) if letter != "\n" and _is_unshown(letter) else letter for letter in text)


def _is_unshown(letter: str) -> bool:
    return unicodedata.category(letter) in _UNSHOWN


def _code(number: int) -> str:
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no text
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def as_json(values: Any, *, allow_nan: bool = True) -> str:
    """Plain values as JSON over several lines, for files and for stdout.

    Names stand in their letters, and what a terminal would act upon as its escape: a program reads back what was there.
    """
    text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=allow_nan)
    return escaped(text, lambda number: f"\\u{number:04x}" if number < 0x10000 else _pair(number)) + "\n"


def _pair(number: int) -> str:
    """A letter beyond 16 bits as JSON escapes it."""
    return json.dumps(chr(number))[1:-1]


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, or nested deeper than Python goes.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> Any:
    """The value in a JSON file, in UTF-8.

    Raises:
        OSError: It cannot be read.
        ValueError: It is no regular file, far too large, no UTF-8, or no JSON.
    """
    return parse_json(read_given(path).decode())
