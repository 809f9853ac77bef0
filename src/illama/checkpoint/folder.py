"""A folder of files that is replaced as a whole: at every instant either the old or the new one can be read.

    last/            the checkpoint
    .last.new/       being written; becomes `last` when complete and on disk
    .last.old/       the previous `last`, between the two renames only

A crash may leave the second or the third behind. Reading takes `last`, else the one set aside; the next save
tidies up.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from illama.errors import UserError

META_FILE = "meta.json"
Writer = Callable[[Path], None]


def current(folder: Path) -> Path | None:
    """The folder that holds the checkpoint at this moment, or None if there is none. Changes nothing."""
    for candidate in (folder, _aside(folder)):
        if candidate.is_dir():
            return candidate
    return None


def replace_folder(folder: Path, writers: Mapping[str, Writer], meta: dict[str, Any], needed_bytes: int) -> None:
    """Write a folder's files, then put it in the place of the previous one.

    Args:
        folder: The folder to replace or create.
        writers: File name -> function that writes that file.
        meta: Content of meta.json; the files' SHA-256 sums are added under "sha256".
        needed_bytes: About how much space the new files take, for the message.

    Raises:
        UserError: The disk is full, the folder cannot be written to, ...; the previous folder is untouched.
    """
    new = _new(folder)
    try:
        _tidy(folder)
        new.mkdir(parents=True)
        sums = {}
        for name, write in writers.items():
            write(new / name)
            _to_disk(new / name)
            sums[name] = sha256(new / name)
        (new / META_FILE).write_text(json.dumps(meta | {"sha256": sums}, indent=1) + "\n")
        _to_disk(new / META_FILE)
        _to_disk(new)
        _swap(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(new, ignore_errors=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise UserError(_cannot_save(folder, cause, needed_bytes)) from error
    shutil.rmtree(_aside(folder), ignore_errors=True)


def read_meta(folder: Path) -> dict[str, Any]:
    """Content of meta.json, after comparing every file with its SHA-256 sum.

    Raises:
        UserError: A file is missing or damaged; the message names it.
    """
    try:
        meta = json.loads((folder / META_FILE).read_text())
        sums = dict(meta["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise _damaged(folder / META_FILE, "is not readable") from None
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            raise _damaged(file, "is missing")
        if sha256(file) != expected:
            raise _damaged(file, "differs from the checksum taken when it was saved")
    return meta


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(file: Path, what: str) -> UserError:
    return UserError(
        f"checkpoint damaged: {file} {what}; restore it from a copy, or delete {file.parent} to do without"
    )


def _new(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _aside(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _tidy(folder: Path) -> None:
    """Undo a save that was cut short: drop what was being written, put back what was set aside."""
    if _new(folder).exists():
        shutil.rmtree(_new(folder))
    if not _aside(folder).exists():
        return
    if folder.exists():
        shutil.rmtree(_aside(folder))
    else:
        _aside(folder).rename(folder)


def _swap(folder: Path) -> None:
    if folder.exists():
        folder.rename(_aside(folder))
    try:
        _new(folder).rename(folder)
    except OSError:
        if _aside(folder).exists():
            _aside(folder).rename(folder)
        raise
    _to_disk(folder.parent)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder for this
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's complaint behind what torch or safetensors raised; None for another fault."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        number = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
        if number is not None:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ or error.__context__
    return None


def _cannot_save(folder: Path, cause: OSError, needed_bytes: int) -> str:
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    kept = "; the previous checkpoint is untouched" if current(folder) else ""
    return (
        f"cannot save the checkpoint {folder}: {cause.strerror or cause} "
        f"(it needs {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free){kept}; "
        "make room or allow writing there, then run the same command again"
    )
