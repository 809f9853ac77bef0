"""JSON that others wrote, or that a crash, a full disk or a person left behind: values, or one kind of error."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from illama.disk import open_at_once

LARGEST = 1 << 30  # bytes of a file: more is no description of anything


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
    with open(path, "rb", opener=open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise ValueError("no regular file" if found.st_size <= LARGEST else f"{found.st_size:,} bytes are too many")
        return parse_json(file.read(LARGEST).decode())
