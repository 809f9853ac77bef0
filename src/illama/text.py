"""How numbers, and texts of unknown origin, are said to people."""

from __future__ import annotations

import unicodedata

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
        text = "".join(_code(letter) if unicodedata.category(letter) in _UNSHOWN else letter for letter in text)
    return text if len(text) <= longest else f"{text[: longest // 2]}...{text[-longest // 2 :]}"


def safe_lines(text: str) -> str:
    """A message of several lines as a terminal may have it."""
    return "\n".join(shown(line, len(line) * 10 + 1) for line in text.split("\n"))


def _code(letter: str) -> str:
    number = ord(letter)
    if 0xDC80 <= number <= 0xDCFF:  # a byte that is no text
        return f"\\x{number - 0xDC00:02x}"
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"
