"""One look through a folder of pictures: which files there are, which are read, and what is passed over and why.

And the files behind a pattern such as photos/**/*.jpg, in a time that the folders bound and no link or pattern does.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from illama.console.text import shown
from illama.data.sources.formats import FileKind, ending_of, kind_of_file, looks_like_picture, remedy
from illama.data.sources.splits import Role, natural_key, role_of
from illama.errors import UserError

# Folders that tools leave behind, in lower case; like hidden ones (.x) they hold no pictures of the data set.
TOOL_FOLDERS = frozenset(
    (
        *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "__macosx", "__pycache__"),
        *("lost+found", "$recycle.bin", "system volume information"),
    )
)
HIDDEN, TOOLS = "hidden (.x)", "in folders of tools (@eaDir, __MACOSX, lost+found, ...)"
NO_PICTURES, LINKS = "files that are no pictures", "links to folders that are read already"
SPECIAL = "that are no regular files"
UNNAMED = "pictures whose names do not end like a picture's; rename them"
HOLDERS = frozenset((".csv", ".tsv", ".parquet", ".tar"))
_EXAMPLES = 3
_HEAD = 32  # bytes that tell a picture
MOST_PARTS = 64  # of a pattern, between slashes


@dataclass
class Reason:
    """Files that are passed over for one reason.

    Attributes:
        count: How many.
        examples: The first few.
        lost: Whether they are pictures that the data set should have had.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)
    lost: bool = False


@dataclass
class PassedOver:
    """Files that are not read, by reason."""

    reasons: dict[str, Reason] = field(default_factory=dict)

    def add(self, why: str, where: str, count: int = 1, *, lost: bool = False) -> None:
        """Count files; `where` names one of them, or the folder that holds them."""
        reason = self.reasons.setdefault(why, Reason())
        reason.count += count
        reason.lost |= lost
        if len(reason.examples) < _EXAMPLES:
            reason.examples.append(where)

    def add_unread(self, ending: str, where: str) -> None:
        """Count a picture of an ending that is not read here."""
        self.add(f"{ending} pictures that cannot be read here: {remedy(ending)}", where, lost=True)

    def take(self, other: PassedOver) -> None:
        """Count those of another place as well."""
        for why, more in other.reasons.items():
            reason = self.reasons.setdefault(why, Reason())
            reason.count += more.count
            reason.lost |= more.lost
            reason.examples += more.examples[: _EXAMPLES - len(reason.examples)]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(reason.count for reason in self.reasons.values())

    def lost(self) -> str:
        """Pictures that cannot be read as they are, in a line; "" without."""
        return "; ".join(_in_words(why, reason) for why, reason in self.reasons.items() if reason.lost)

    def line(self) -> str:
        """All reasons with their counts, in one line; "" where nothing is passed over."""
        return "; ".join(_in_words(why, reason) for why, reason in self.reasons.items() if reason.count)

    def to_dict(self) -> dict[str, dict[str, object]]:
        """Plain values."""
        return {why: {"count": one.count, "examples": one.examples} for why, one in self.reasons.items()}


def _in_words(why: str, reason: Reason) -> str:
    named = f" ({shown(reason.examples[0])}{', ...' if reason.count > 1 else ''})" if reason.lost else ""
    return f"{reason.count:,} {why}{named}"


@dataclass(frozen=True)
class Listing:
    """What a folder holds, by paths with slashes below it.

    Attributes:
        root: The folder.
        pictures: In the order of their names, digits as numbers.
        folders: All visible ones, in the order of the walk.
        holders: Files of the endings `HOLDERS`, which may hold or list pictures, in the order of their names; they are
            among the others.
        passed_over: All other files.
    """

    root: str
    pictures: tuple[str, ...]
    folders: tuple[str, ...]
    holders: tuple[str, ...]
    passed_over: PassedOver

    def holding(self, *endings: str) -> list[str]:
        """The holders with one of some endings."""
        return [path for path in self.holders if ending_of(path) in endings]


def is_hidden(name: str) -> str | None:
    """Why a file or folder of that name is passed over with all that is in it; None where it is not."""
    if name.startswith("."):
        return HIDDEN
    return TOOLS if name.lower() in TOOL_FOLDERS else None


def walk(root: str | os.PathLike[str], splits: Collection[str] = ()) -> Listing:
    """Look through a folder once; what is below a link is found as well, but nothing twice.

    A linked folder is followed unless it leads to a folder that is read anyway: one of the tree itself, one above it,
    or one that is, or lies in, a folder that another link has led to. A split may be a link to a folder beside it
    (train -> images_train), which is then read by the split's name alone.

    Args:
        root: The folder.
        splits: Names of splits besides the usual ones.

    Raises:
        UserError: A folder cannot be read.
    """
    walker = _Walker(os.fspath(root), splits)
    walker.go()
    pictures, holders = sorted(walker.pictures, key=natural_key), sorted(walker.holders, key=natural_key)
    return Listing(walker.root, tuple(pictures), tuple(walker.folders), tuple(holders), walker.passed_over)


class _Walker:
    """The state of one walk."""

    def __init__(self, root: str, splits: Collection[str]) -> None:
        self.root = root
        self.pictures: list[str] = []
        self.folders: list[str] = []
        self.holders: list[str] = []
        self.passed_over = PassedOver()
        self._splits = splits
        self._real_root = os.path.realpath(root)
        self._followed: set[str] = set()

    def go(self) -> None:
        """Folder after folder, in the order of their names."""
        entries = _entries(self.root, self.root)
        links = [entry for entry in entries if entry.is_symlink() and self._is_split(entry.name)]
        renamed = {os.path.realpath(entry.path): role_of(entry.name) for entry in links}
        waiting = [(entry.name, "") for entry in entries if self._look("", entry, "", renamed)][::-1]
        while waiting:
            path, above = waiting.pop()  # `above`: the real folder above, where that lies outside of the tree
            real = self._outside(path, above)
            if real and real in self._followed:
                self.passed_over.add(LINKS, path)
                continue
            self._followed |= {real} if real else set()
            self.folders.append(path)
            entries = _entries(f"{self.root}/{path}", self.root)
            folders = [entry for entry in entries if self._look(f"{path}/", entry, real, renamed)]
            waiting += [(f"{path}/{entry.name}", real) for entry in reversed(folders)]

    def _outside(self, path: str, above: str) -> str:
        """The real path of a folder that lies outside of the tree, which links lead to; "" for all others."""
        full = f"{self.root}/{path}"
        if os.path.islink(full):
            real = os.path.realpath(full)
            return "" if f"{real}/".startswith(f"{self._real_root}/") else real
        return above and f"{above}/{path.rpartition('/')[2]}"

    def _is_split(self, name: str) -> bool:
        return name in self._splits or role_of(name) is not None

    def _look(self, prefix: str, entry: os.DirEntry[str], above: str, renamed: Mapping[str, Role | None]) -> bool:
        """Sort in one entry; whether it is a folder to look into."""
        path = prefix + entry.name
        is_folder = _leads_to(entry.is_dir)
        why = is_hidden(entry.name)
        if why is not None:
            self.passed_over.add(why, path, _files_below(entry.path) if is_folder and not entry.is_symlink() else 1)
        elif is_folder and not self._follows(prefix, entry, above, renamed):
            self.passed_over.add(LINKS, path)
        elif is_folder:
            return True
        else:
            self._sort_in(path, entry)
        return False

    def _sort_in(self, path: str, entry: os.DirEntry[str]) -> None:
        kind = kind_of_file(entry.name)
        # a link to nowhere is a picture that cannot be read; one to a device must not be opened
        if not _leads_to(entry.is_file) and not (entry.is_symlink() and not os.path.exists(entry.path)):
            self.passed_over.add(SPECIAL, path)
        elif kind is FileKind.PICTURE:
            self.pictures.append(path)
        elif kind is FileKind.UNREAD:
            self.passed_over.add_unread(ending_of(entry.name), path)
        elif kind is FileKind.UNKNOWN and _holds_picture(entry.path):
            self.passed_over.add(UNNAMED, path, lost=True)
        else:
            self.passed_over.add(NO_PICTURES, path)
            if ending_of(entry.name) in HOLDERS:
                self.holders.append(path)

    def _follows(self, prefix: str, entry: os.DirEntry[str], above: str, renamed: Mapping[str, Role | None]) -> bool:
        """Whether what is below a folder is not read elsewhere."""
        if not entry.is_symlink():
            if prefix or os.path.realpath(entry.path) not in renamed:
                return True
            return role_of(entry.name) not in (None, renamed[os.path.realpath(entry.path)])  # val may be train
        real = os.path.realpath(entry.path)
        start = f"{real.rstrip('/')}/"
        inside = start.startswith(f"{self._real_root}/")
        if f"{self._real_root}/".startswith(start) or f"{above}/".startswith(start):  # a folder above
            return False
        return not inside or not (prefix or not self._is_split(entry.name))


def _entries(folder: str, root: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        where = "" if folder == root else f" of {shown(root)}"
        raise UserError(
            f"folder {shown(folder)}{where} cannot be read: {error.strerror or error}; nothing may be missing unseen"
        ) from None


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; a link that leads to itself, or to a name that is too long, is of none."""
    try:
        return kind()
    except OSError:
        return False


def _files_below(folder: str) -> int:
    """Files in a folder that is passed over; links are not followed, and what cannot be read counts as nothing."""
    return sum(len(files) for _, _, files in os.walk(folder))


def _holds_picture(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return looks_like_picture(file.read(_HEAD))
    except OSError:
        return False


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
    paths: Iterable[str] = ["/" if pattern.startswith("/") else ""]
    for part in parts:
        if part:
            paths = _below(paths) if part == "**" else _step(paths, part)
            if part == "..":  # one path for each folder that is meant
                paths = {os.path.realpath(path): path for path in reversed(list(paths))}.values()
    return sorted(path for path in dict.fromkeys(paths) if not pattern.endswith("/") and os.path.isfile(path))


def _step(folders: Iterable[str], part: str) -> Iterator[str]:
    """What one part of a pattern leads to."""
    if not glob.has_magic(part):
        yield from (path for folder in folders if os.path.lexists(path := os.path.join(folder, part)))
        return
    fits = re.compile(fnmatch.translate(os.path.normcase(part))).match
    for folder in folders:
        for entry in _visible(folder):
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
        for entry in _visible(path):
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(os.path.join(path, entry.name))
            elif not os.path.isdir(entry.path):
                yield os.path.join(path, entry.name)


def _visible(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder or ".") as entries:
            return list(entries)
    except OSError:  # as glob: what cannot be looked into holds nothing
        return []
