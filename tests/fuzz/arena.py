"""One case in a process of its own, and the verdict on how it ended.

The process that calls this has imported everything and never started a thread; each case is a fork of it, which costs
milliseconds where an import costs seconds.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import hashlib
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

GIB = 1 << 30
MOST_BYTES = 2 * GIB  # resident, at any instant
_BACKSTOP = 6 * GIB  # of address space for data: before the machine itself runs out
CPU_S, WALL_S = 20, 60  # a command that works, and one that waits
_WATCHED_S = 0.01
_LONGEST_OUTPUT = 1 << 20
FINE = (0, 2, 75, 130)  # exit codes that stand for an answer, a line, and the two kinds of stop
_OWN_SIGNS = "\n\t\r"


@dataclass
class Case:
    """One damaged input and the command that reads it.

    Attributes:
        folder: Holds `inputs`, `victim`, which must not change, and `work`, where the command runs.
        words: What follows `illama`.
        variables: Of the environment.
    """

    folder: Path
    words: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def inputs(self) -> Path:
        return self.folder / "inputs"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def victim(self) -> Path:
        return self.folder / "victim"


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        build: Fills the folder of a case and says which command reads it.
        share: How many cases it gets, relative to the others.
        run: The command; `illama` by default.
        wall_s: Seconds after which it hangs.
    """

    build: Callable[[Case, Random], None]
    share: int = 10
    run: Callable[[list[str]], int] | None = None
    wall_s: float = WALL_S


@dataclass(frozen=True)
class Ended:
    """How a case ended.

    Attributes:
        failure: What must not happen, in a few words; None where all is well.
        code: Exit code; negative for the number of a signal.
        line: The last line of stderr.
    """

    failure: str | None
    code: int
    line: str
    seconds: float
    peak_bytes: int


def run_case(kind: Kind, case: Case) -> Ended:
    """Run the command of a case that `kind.build` has prepared.

    SIGCHLD has to be blocked in this process: the end of the command is waited for by it.
    """
    before = snapshot(case)
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(kind, case)
    status, peak, killed = _watch(pid, kind.wall_s)
    seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # whatever it has started
    out, err = (_said(case.folder / name) for name in ("out", "err"))
    code = os.waitstatus_to_exitcode(status)
    failure = killed or _judge(code, out, err)
    if failure is None and snapshot(case) != before:
        failure = "changes something outside"
    lines = [line for line in err.split("\n") if line.strip()]
    return Ended(failure, code, lines[-1][:2000] if lines else "", seconds, peak)


def snapshot(case: Case) -> dict[str, tuple[object, ...]]:
    """Names, kinds, sizes, times and contents of everything that a command must leave as it is."""
    found: dict[str, tuple[object, ...]] = {"": tuple(sorted(os.listdir(case.folder)))}
    for root in (case.inputs, case.victim):
        for at, folders, files in os.walk(os.fsencode(root)):
            for name in (*folders, *files):
                path = os.path.join(at, name)
                about = os.lstat(path)
                content: object = os.readlink(path) if os.path.islink(path) else None
                if content is None and os.path.isfile(path) and about.st_size < GIB:
                    with open(path, "rb") as file:
                        content = hashlib.blake2b(file.read()).digest()
                found[os.fsdecode(path)] = (about.st_mode, about.st_size, about.st_mtime_ns, about.st_rdev, content)
    return found


def _watch(pid: int, wall_s: float) -> tuple[int, int, str | None]:
    """Wait for a process: its status, its most memory, and why it had to be killed."""
    began, peak, killed = time.monotonic(), 0, None
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, _WATCHED_S)
        ended, status, _ = os.wait4(pid, os.WNOHANG)
        if ended:
            return status, peak, killed
        peak = max(peak, _peak_bytes(pid))
        if killed is None:
            hangs = time.monotonic() - began > wall_s or _cpu_s(pid) > min(CPU_S, wall_s)
            killed = "hangs" if hangs else "takes more than 2 GB" if peak > MOST_BYTES else None
            if killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _peak_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status") as file:
            line = next((line for line in file if line.startswith("VmHWM:")), "0 0 kB")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(line.split()[1]) * 1024


def _cpu_s(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as file:
            words = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _said(file: Path) -> str:
    try:
        return file.read_bytes()[: 2 * _LONGEST_OUTPUT].decode(errors="backslashreplace")
    except FileNotFoundError:
        return ""


def _judge(code: int, out: str, err: str) -> str | None:
    said = out + err
    if code < 0:
        return f"ends with signal {-code} ({signal.Signals(-code).name})"
    if "Traceback (most recent call last)" in said:
        return "shows a traceback"
    if code not in FINE:
        return f"ends with exit code {code}"
    told = sum(line.startswith("illama: error:") for line in err.split("\n"))
    if told != (code == 2):
        return f"tells {told} errors with exit code {code}"
    if any(unicodedata.category(sign) in ("Cc", "Cf", "Zl", "Zp") and sign not in _OWN_SIGNS for sign in set(said)):
        return "prints control characters"
    return "says more than a megabyte" if len(said) > _LONGEST_OUTPUT else None


def _become(kind: Kind, case: Case) -> None:
    """In the fork: the command, to its very end."""
    code = 1
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGINT, signal.default_int_handler)
        resource.setrlimit(resource.RLIMIT_DATA, (_BACKSTOP, _BACKSTOP))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.chdir(case.work)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(case.folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115 - to the end
        faulthandler.enable(sys.stderr)
        os.environ |= {"HOME": str(case.victim), "TMPDIR": str(case.work), **case.variables}
        command = kind.run or _illama
        code = command(case.words)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    try:  # as the interpreter ends: threads are waited for, and what is registered is done
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:
        traceback.print_exc()
        code = code or 1
    finally:
        os._exit(code if 0 <= code < 256 else 1)


def _illama(words: Sequence[str]) -> int:
    from illama.cli.main import main

    return main(words)


def fresh(folder: Path) -> Case:
    """An empty case in the place of the one before."""
    if folder.exists():
        shutil.rmtree(folder)
    case = Case(folder)
    for place in (case.inputs, case.work, case.victim):
        place.mkdir(parents=True)
    (case.victim / "kept.txt").write_text("whatever happens\n")
    for name in ("out", "err"):
        (folder / name).touch()
    return case
