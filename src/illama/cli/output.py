"""Where results go: a file that is written whole, or stdout."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from illama.disk import replace_file, utf8
from illama.errors import UserError

STDOUT = "-"


def check_targets(**targets: str | None) -> None:
    """Refuse, before the work begins, result files that cannot be written.

    Args:
        targets: Option name -> file, "-" for stdout, None when the option is not given.

    Raises:
        UserError: A folder that does not exist or cannot be written to, or stdout asked for twice.
    """
    for option, target in targets.items():
        if target is None or target == STDOUT:
            continue
        folder = Path(target).parent
        if not folder.is_dir():
            raise UserError(f"--{option} {target}: there is no folder {folder}")
        if Path(target).is_dir() or not os.access(folder, os.W_OK):
            raise UserError(f"--{option} {target} cannot be written")
    if list(targets.values()).count(STDOUT) > 1:
        options = " and ".join(f"--{option}" for option in targets)
        raise UserError(f"{options} cannot both write to stdout; give one of them a file")


def write_result(target: str, text: str) -> None:
    """Write to a file, which appears only when it is complete, or to stdout ("-").

    Raises:
        UserError: The disk is full, ...
    """
    if target == STDOUT:
        sys.stdout.write(text)
        return
    try:
        replace_file(Path(target), lambda partial: partial.write_bytes(utf8(text)))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
