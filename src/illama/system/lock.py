"""One process at a time works in a folder; who it is stands in the folder's `.lock`.

The folder and the lock are known by what they are, not by their names: whoever moves or deletes one of them while it
is held is noticed by `RunLock.demand_held`.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from illama.errors import UserError
from illama.system.files import open_regular, write_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"
PATIENCE_S = 0.2  # `lock_holder` holds the lock for an instant, which must not stop a training run
_log = logging.getLogger("illama.training")
_held: set[RunLock] = set()  # of this process


def locked(handle: int, patience_s: float = PATIENCE_S) -> bool:
    """Lock an open file or folder for this process alone, until it is closed or the process ends.

    Args:
        handle: Its number.
        patience_s: How long another process is waited for.

    Returns:
        Whether it is; False if another process has it.

    Raises:
        OSError: There are no locks here (Windows, some network file systems).
    """
    until = time.monotonic() + patience_s
    while True:
        try:
            if fcntl is None:
                raise OSError("this operating system has none")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)


class RunLock:
    """Holds a run folder while the `with` block lasts.

    The operating system gives the lock back when the process ends, however it ends; the file that stays behind blocks
    nobody. Processes forked meanwhile do not hold it: loader workers that outlive a killed run keep nobody waiting.
    Where there are no such locks there is none, which is logged once.

    Args:
        run_dir: The run's folder; created if need be.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self._handle: int | None = None
        self._folder: int | None = None  # held open, so that no other folder gets its number
        self._one_at_a_time = threading.Lock()

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            UserError: Another process has it (its host and number are named), or the folder cannot be written to.
        """
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            if os.name != "nt":  # Windows cannot open a folder, and does not let it be moved either
                self._folder = os.open(self.run_dir, os.O_RDONLY)
            self._handle = self._open_locked()
        except (OSError, UserError) as error:
            self.release()
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"cannot write the run folder {self.run_dir}: {error.strerror}; choose another with --out"
            ) from error
        _held.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back; in a forked child: forget the parent's, which the parent keeps."""
        for handle in (self._handle, self._folder):
            if handle is not None:
                os.close(handle)
        self._handle = self._folder = None
        _held.discard(self)

    def demand_held(self) -> None:
        """See to it that the folder of this name is still the one that was locked, and locked by this process.

        A lock file that somebody deleted is put there again while no other process has done so.

        Raises:
            UserError: The folder was moved or deleted, or another process has begun to train in it.
        """
        with self._one_at_a_time:  # the thread that saves asks as well
            if self._handle is None:
                return
            if self._folder is not None and not _is(self.run_dir, self._folder):
                raise UserError(
                    f"{self.run_dir} was moved or deleted while it was trained: stopped. "
                    "Put it back, or give its new place with --out, and run the same command again"
                )
            lock = self.run_dir / LOCK_FILE
            if not os.path.lexists(lock):
                try:
                    before, self._handle = self._handle, self._open_locked()
                except OSError as error:
                    raise UserError(
                        f"{lock} was deleted while the run goes on, and cannot be made again: {error.strerror}; allow "
                        "writing there, then run the same command again"
                    ) from error
                os.close(before)
                _log.warning("%s was deleted while the run goes on; it is there again: leave it", lock)
            elif not _is(lock, self._handle):
                raise UserError(
                    f"{self.run_dir} is being trained by {in_words(lock_holder(self.run_dir) or {})} as well, "
                    f"for its {LOCK_FILE} was deleted: this one stops, its last checkpoint is whole; let the other "
                    "go on"
                )

    def _open_locked(self) -> int:
        """The lock file, open and locked, with who holds it.

        Raises:
            UserError: Another process has it.
            OSError: It cannot be made, or something else stands in its place.
        """
        path = self.run_dir / LOCK_FILE
        while True:
            handle = open_regular(str(path), os.O_RDWR | os.O_CREAT)
            try:
                is_ours = locked(handle)
            except OSError as error:
                is_ours = True
                _log.warning(
                    "%s cannot be locked (%s): see to it that no other process trains there", self.run_dir, error
                )
            if not is_ours:
                holder = _read(handle)
                os.close(handle)
                raise UserError(
                    f"{self.run_dir} is being trained by {in_words(holder)}; "
                    "wait for its end or stop it, or give another folder with --out"
                )
            if os.fstat(handle).st_nlink == 1 and _is(path, handle):
                break
            if _is(path, handle):  # a copy of the folder by `cp -al` has the same file: it is not ours alone
                write_file(path, b"")
            os.close(handle)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        with suppress(OSError):  # a full disk: the lock holds without its text
            os.ftruncate(handle, 0)
            os.pwrite(handle, json.dumps(holder).encode() + b"\n", 0)
        return handle


def lock_holder(run_dir: Path) -> dict[str, Any] | None:
    """The process that works in a folder: its "host", "pid" and "started" as far as known; None if there is none."""
    if fcntl is None:
        return None
    try:
        handle = open_regular(str(Path(run_dir) / LOCK_FILE), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _read(handle)
    except OSError:  # a file system without locks
        return None
    finally:
        os.close(handle)
    return None


def in_words(holder: dict[str, Any]) -> str:
    """Who holds a lock: "process 4242 on node7 since 2026-11-23T09:15:00+00:00"."""
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('started')}"


def _is(path: Path, handle: int) -> bool:
    """Whether the file or folder of that name is the one that is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


def _read(handle: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(handle, 4096, 0)))
    except (OSError, ValueError, TypeError, RecursionError):  # its owner is about to write it
        return {}


def _release_in_child() -> None:
    for lock in tuple(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
