"""Parts of work in processes of their own, each with a time limit; what one wrote is on disk before the next begins."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from illama.console.text import duration

WARM_S = 150.0  # what fills compile caches gets so long from its start
SAVED = 75  # exit code of a run that a signal stopped after everything was saved


@dataclass(frozen=True)
class Part:
    """One piece of work.

    Attributes:
        name: What it is called, and its folder.
        what: What it finds out.
        command: What is started.
        limit_s: After so long its processes get SIGTERM.
        worth_s: With less left of the budget it is not begun.
        grace_s: From SIGTERM to SIGKILL.
        figures: Reads the key figures from the part's folder, finished or not.
        needs: Why it cannot be done here; None where it can.
        timed: Whether nothing else may run meanwhile.
        beside: Commands started with it that fill compile caches for later parts; the next timed part ends them.
    """

    name: str
    what: str
    command: Sequence[str]
    limit_s: float
    worth_s: float = 20.0
    grace_s: float = 10.0
    figures: Callable[[Path], dict[str, str]] = lambda folder: {}
    needs: str | None = None
    timed: bool = False
    beside: Sequence[Sequence[str]] = ()


@dataclass
class Outcome:
    """What became of a part.

    Attributes:
        name, what, command: The part's.
        status: "running", "done", "failed", "stopped" (at its limit) or "skipped".
        why: More about that.
        seconds: How long it took.
        exit_code: Of its process; negative: the signal that ended it.
        figures: Key figures by name.
    """

    name: str
    what: str
    command: list[str]
    status: str = "running"
    why: str = ""
    seconds: float = 0.0
    exit_code: int | None = None
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """Whether it did not come to its end, or ended with an error. A run that was stopped and saved is neither."""
        return self.status == "failed" or (self.status == "stopped" and self.exit_code != SAVED)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Group:
    """A process and all that it starts, as a process group of its own; what it says goes to a file at once.

    Args:
        command: What is started.
        log: The file.
        environment: All variables.
        folder: Where it runs.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str], folder: Path) -> None:
        self.began = time.monotonic()
        with log.open("wb") as said:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=dict(environment),
                start_new_session=True,
            )

    def wait(self, seconds: float) -> int | None:
        """Its exit code; None if it is not over after so long."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(max(0.0, seconds))
        return None

    def end(self, grace_s: float) -> int:
        """SIGTERM, and SIGKILL to what is left after the grace; the exit code."""
        if self._process.poll() is None:
            self._send(signal.SIGTERM)
            self.wait(grace_s)
        self._send(signal.SIGKILL)  # also to what an ended process has left behind
        return self._process.wait()

    def _send(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


class Session:
    """Does parts one after the other within a budget.

    Args:
        folder: Each part gets a folder in it.
        budget_s: Seconds for all parts together.
        environment: Variables of their processes.
        root: Where they run.
        keep: Given all outcomes so far whenever one has changed; writes them.
        say: Tells a person.
    """

    def __init__(
        self,
        folder: Path,
        budget_s: float,
        environment: Mapping[str, str],
        root: Path,
        keep: Callable[[list[Outcome]], None],
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.folder, self.budget_s = folder, budget_s
        self._environment, self._root, self._keep, self._say = environment, root, keep, say
        self._began = time.monotonic()
        self._beside: list[Group] = []
        self.outcomes: list[Outcome] = []

    @property
    def spent_s(self) -> float:
        """Seconds since the session began."""
        return time.monotonic() - self._began

    def do(self, parts: Sequence[Part]) -> list[Outcome]:
        """Do what can be done and fits into the budget."""
        try:
            for part in parts:
                self._part(part)
        finally:
            for group in self._beside:
                group.end(0.0)
        return self.outcomes

    def _part(self, part: Part) -> None:
        outcome = Outcome(part.name, part.what, list(part.command))
        self.outcomes.append(outcome)
        if part.needs is None and part.timed:
            self._wait_for_silence(part)
        left = self.budget_s - self.spent_s - part.grace_s
        if part.needs is not None:
            outcome.status, outcome.why = "skipped", part.needs
        elif left < part.worth_s:
            outcome.status = "skipped"
            outcome.why = f"it needs {duration(part.worth_s)}, and {duration(max(0.0, left))} of the budget are left"
        else:
            self._tell(f"{part.name}: {part.what} (at most {duration(min(part.limit_s, left))})")
            self._keep(self.outcomes)
            with self._timing(outcome):
                self._run(part, outcome, min(part.limit_s, left))
            outcome.figures = _figures(part, self.folder / part.name)
        self._keep(self.outcomes)
        self._tell(f"{part.name}: {outcome.status}{f' ({outcome.why})' if outcome.why else ''}")
        for name, value in outcome.figures.items():
            self._say(f"{'':20}{name}: {value}")

    @contextlib.contextmanager
    def _timing(self, outcome: Outcome) -> Iterator[None]:
        """Counts the seconds; says so where a signal to this process or a bug of it ends the part."""
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            outcome.status, outcome.why = "stopped", f"{type(error).__name__} of the session"
            raise
        finally:
            outcome.seconds = round(time.monotonic() - began, 1)
            self._keep(self.outcomes)

    def _run(self, part: Part, outcome: Outcome, limit_s: float) -> None:
        folder = self.folder / part.name
        folder.mkdir(parents=True, exist_ok=True)
        for index, command in enumerate(part.beside):
            self._beside.append(Group(command, folder / f"beside-{index}.log", self._environment, self._root))
        group = Group(part.command, folder / "log.txt", self._environment, self._root)
        try:
            in_time = group.wait(limit_s) is not None
        finally:
            outcome.exit_code = group.end(part.grace_s)
        if not in_time:
            outcome.status, outcome.why = "stopped", f"at its limit of {duration(limit_s)}"
            outcome.why += ", saved" if outcome.exit_code == SAVED else ""
        elif outcome.exit_code:
            outcome.status, outcome.why = "failed", f"exit code {outcome.exit_code}"
        else:
            outcome.status = "done"

    def _wait_for_silence(self, part: Part) -> None:
        """Nothing of ours runs beside what is timed."""
        while self._beside:
            group = self._beside.pop()
            left = min(WARM_S - (time.monotonic() - group.began), self.budget_s - self.spent_s - part.worth_s)
            group.wait(left)
            group.end(0.0)

    def _tell(self, text: str) -> None:
        left = max(0.0, self.budget_s - self.spent_s)
        self._say(f"{self.spent_s:5.0f} s, {left:.0f} s left  {text}")


def _figures(part: Part, folder: Path) -> dict[str, str]:
    """What the part wrote may be of any state: it may have been killed."""
    try:
        return part.figures(folder)
    except FileNotFoundError:
        return {}
    except Exception as error:
        return {"figures": f"cannot be read ({type(error).__name__}: {error})"}
