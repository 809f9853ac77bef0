"""JSON that others wrote, or that a crash, a full disk or a person left behind: values, or one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from illama.console.text import escaped
from illama.system.given_file import read_given


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
