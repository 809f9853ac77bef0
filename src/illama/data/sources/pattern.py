"""Files behind a pattern such as photos/**/*.jpg, in a time that the folders bound and no link or pattern does."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Iterable, Iterator

from illama.console.text import shown
from illama.errors import UserError

MOST_PARTS = 64  # of a pattern, between slashes


def files_matching(pattern: str) -> list[str]:
    """Regular files whose names fit a pattern, sorted.

    `*`, `?`, `[abc]` and `**` mean what they mean to `glob`, which leaves out hidden names, too. But `**` follows no
    links, and of `**` and `..` no folder comes twice: `**/../**` would look through everything once for each folder,
    and two links to their own folder would double their paths forty times.

    Raises:
        UserError: It has too many parts.
    """
    parts = pattern.split("/")
    if len(parts) > MOST_PARTS:
        raise UserError(f"{shown(pattern)} has {len(parts)} parts; allowed: up to {MOST_PARTS}; give folders instead")
    found: Iterable[str] = ["/" if pattern.startswith("/") else ""]
    for part in parts:
        if part:
            found = _below(found) if part == "**" else _step(found, part)
            found = _each_once(found) if part == ".." else found
    return sorted(path for path in dict.fromkeys(found) if not pattern.endswith("/") and os.path.isfile(path))


def _step(folders: Iterable[str], part: str) -> Iterator[str]:
    """What one part of a pattern leads to."""
    if not glob.has_magic(part):
        yield from (path for folder in folders if os.path.lexists(path := os.path.join(folder, part)))
        return
    fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
    for folder in folders:
        for entry in _entries(folder):
            if fits(os.path.normcase(entry.name)) and (part.startswith(".") or not entry.name.startswith(".")):
                yield os.path.join(folder, entry.name)


def _below(folders: Iterable[str]) -> Iterator[str]:
    """What `**` stands for: each folder, and everything in it to the bottom."""
    waiting = [folder for folder in folders if os.path.isdir(folder or ".")][::-1]
    seen = set()
    while waiting:
        path = waiting.pop()
        real = os.path.realpath(path)
        if real in seen:
            continue
        seen.add(real)
        yield path
        for entry in _entries(path):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(os.path.join(path, entry.name))
            elif not os.path.isdir(entry.path):
                yield os.path.join(path, entry.name)


def _each_once(folders: Iterable[str]) -> list[str]:
    """One path for each folder that is meant."""
    found: dict[str, str] = {}
    for folder in folders:
        found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as found:
            return list(found)
    except OSError:  # as glob: what cannot be looked into holds nothing
        return []
