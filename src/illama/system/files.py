"""Files: those of others are opened to be read, those that are written are whole or absent.

Others' files are regular ones of a bounded size: a pipe would be waited for, a device has no end, and a sparse file of
any size costs its maker nothing. Links are followed: who names a file, or lists it in a data set, means what it leads
to.

What is written is on the disk, and never goes through what others have put in its place. Two kinds of names. A file of
the program's own (in a run's folder, a report's) is a regular file: a link, a pipe or a device in its place is refused.
A name that the user gave (`--json FILE`) means what it leads to: a link is followed, and a device, a pipe or an open
descriptor (/dev/null, /dev/stdout) is written to.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LARGEST = 1 << 30  # bytes of a file that is read whole: more is no description, table or picture
_NO_FOLLOWING = getattr(os, "O_NOFOLLOW", 0)
_AT_ONCE = getattr(os, "O_NONBLOCK", 0)  # does not wait for the other end of a pipe
_MOST_LINKS = 40  # as the kernel


def open_given(path: str | os.PathLike[str], largest: int = LARGEST) -> BinaryIO:
    """Open a file for reading.

    Args:
        path: Its name.
        largest: How many bytes it may have.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is no regular file, larger than that, or its name is none (it holds a NUL).
    """
    file: BinaryIO = open(path, "rb", opener=open_at_once)  # noqa: SIM115 - it is the caller's
    status = os.fstat(file.fileno())
    is_regular = stat.S_ISREG(status.st_mode)
    if is_regular and status.st_size <= largest:
        return file
    file.close()
    too_many = f"{status.st_size:,} bytes are too many (allowed: up to {largest:,})"
    raise ValueError(too_many if is_regular else "it is no regular file")


def read_given(path: str | os.PathLike[str], largest: int = LARGEST) -> bytes:
    """The content of a file; as `open_given`."""
    with open_given(path, largest) as file:
        return file.read(largest)


def read_given_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """The content of a file in UTF-8, with or without a byte order mark; as `open_given`.

    Raises:
        UnicodeDecodeError: It is no UTF-8.
    """
    return read_given(path, largest).decode("utf-8-sig")


def why(error: OSError | ValueError) -> str:
    """What is wrong with a file that cannot be read, in a few words."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return getattr(error, "strerror", None) or str(error)


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is such a regular file; a name that none can have (too long, with a NUL) has none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def at_home(path: str | os.PathLike[str]) -> Path:
    """A path as a shell reads it: with ~ for a home; a name after ~ that is nobody's stays as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def replacing(path: Path, *, given: bool = False) -> Iterator[Path]:
    """A file that appears, or replaces the one of its name, once it is complete and on the disk.

    It is written under a fresh name beside it, which nobody can have prepared; where that fails, nothing is left.

    Args:
        path: The file.
        given: Whether the user named it.

    Yields:
        Where to write it: an empty file.

    Raises:
        OSError: As in the block, the folder cannot be written to, or something else than a file stands there.
    """
    stream = _stream(path) if given else None
    if stream is not None:
        with tempfile.TemporaryDirectory(prefix="illama-") as folder:
            made = Path(folder) / "made"
            yield made
            with made.open("rb") as content, stream() as target:
                shutil.copyfileobj(content, target)
        return
    path = Path(os.path.realpath(path)) if given else path
    _demand_file(path)
    partial = path.with_name(f".{secrets.token_hex(8)}.partial")
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_FOLLOWING, 0o666))
    try:
        mode = partial.stat().st_mode
        yield partial
        partial.chmod(mode)  # safetensors lets nobody but the owner read
        to_disk(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes, *, given: bool = False) -> None:
    """Write a file that is there as a whole or not at all; as `replacing`."""
    with replacing(path, given=given) as partial:
        partial.write_bytes(content)


def is_partial(name: str) -> bool:
    """Whether a file of that name was left by a writer that was killed."""
    return name.startswith(".") and name.endswith(".partial")


def remove_partial(folder: Path) -> None:
    """Delete what writers that were killed have left; the caller is the only one to write there."""
    for path in list(folder.iterdir()):
        if is_partial(path.name):
            remove(path)


def demand_writable(path: Path) -> None:
    """Whether a file that the user named can be written, before the work for it begins.

    Raises:
        OSError: It cannot be; `strerror` says why.
    """
    if _stream(path) is not None:
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        missing = target.parent if path.is_symlink() else path.parent
        raise FileNotFoundError(errno.ENOENT, f"there is no folder {missing}")
    _demand_file(target)
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def is_stream(path: Path) -> bool:
    """Whether a name that the user gave is a device, a pipe or an open descriptor: what is written twice stands there
    twice."""
    return _stream(path) is not None


def own_file(path: str, flags: int) -> int:
    """An opener for `open` of a file that is added to: a regular file with no other name, made if absent.

    A file with a second name (`cp -al` made a copy of its folder) is parted from it first: the copy stays as it is.
    """
    with_others = os.path.lexists(path) and os.lstat(path).st_nlink > 1
    if with_others:
        _demand_file(Path(path))
        write_file(Path(path), Path(path).read_bytes())
    return open_regular(path, flags | os.O_CREAT)


def open_regular(path: str, flags: int) -> int:
    """An opener for `open` that follows no link and takes regular files only.

    Raises:
        OSError: Something else stands there.
    """
    _demand_file(Path(path))
    handle = os.open(path, flags | _NO_FOLLOWING | _AT_ONCE, 0o666)
    if not stat.S_ISREG(os.fstat(handle).st_mode):  # it was put there meanwhile
        os.close(handle)
        raise _taken(path)
    return handle


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that does not wait for somebody to write into a pipe."""
    return os.open(path, flags | _AT_ONCE)


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


def remove(path: Path) -> None:
    """Delete a file, a folder with what it holds, or a link, whose target stays; nothing where there is nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def utf8(text: str) -> bytes:
    """A text for a file; a byte of a file's name that is no text stands in it as \\udcXX, as JSON writes it."""
    return text.encode(errors="backslashreplace")


def _demand_file(path: Path) -> None:
    """A regular file stands there, or nothing."""
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise _taken(path)


def _taken(path: Path | str) -> OSError:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    kind = kinds.get(stat.S_IFMT(os.lstat(path).st_mode), "a device")
    return FileExistsError(
        errno.EEXIST, f"there is {kind} in the place of {os.path.basename(path)}, which stays as it is", str(path)
    )


def _stream(path: Path) -> Callable[[], BinaryIO] | None:
    """Opens what can only be written to; None for a file, or nothing."""
    number = _descriptor(path)
    if number is not None:
        return lambda: _duplicate(number)
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return None
    if not (stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)):
        return None
    return lambda: open(path, "wb", opener=lambda name, _: os.open(name, os.O_WRONLY))


def _descriptor(path: Path) -> int | None:
    """Number of the open file of this process that a name such as /dev/stdout stands for.

    Opened by its name, a file that the shell has opened would be cut, and written to from its start.
    """
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(path.parent)
        if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = Path(folder, os.readlink(path))
    return None


def _duplicate(number: int) -> BinaryIO:
    for text in (sys.stdout, sys.stderr):  # what was said before comes before
        text.flush()
    return os.fdopen(os.dup(number), "wb")
