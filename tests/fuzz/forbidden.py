"""Commands that do what must not happen, each in its own way: what the verdicts of the others are worth."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.arena import Case, Kind

_SOON_S = 0.5


def _raises(_: list[str]) -> int:
    raise RuntimeError("a bug of ours")


def _shows_a_traceback(_: list[str]) -> int:
    print("Traceback (most recent call last):\n  ...", file=sys.stderr)
    return 0


def _raises_at_the_very_end(_: list[str]) -> int:
    import threading

    threading.Thread(target=_raises, args=([],)).start()
    return 0


def _ends_itself(_: list[str]) -> int:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def _waits(_: list[str]) -> int:
    time.sleep(3600)
    return 0


def _works_without_end(_: list[str]) -> int:
    while True:
        pass


def _eats(_: list[str]) -> int:
    held = []
    while True:
        held.append(b"x" * (64 << 20))


def _writes_outside(words: list[str]) -> int:
    Path(words[0], "kept.txt").write_text("something else\n")
    return 0


def _writes_beside(words: list[str]) -> int:
    Path(words[0]).with_name("new").write_text("")
    return 0


def _makes_a_file_outside(words: list[str]) -> int:
    Path(words[0], "new.txt").touch()
    return 0


def _removes_an_input(words: list[str]) -> int:
    Path(words[0]).with_name("inputs").rmdir()
    return 0


def _ends_with_one(_: list[str]) -> int:
    return 1


def _refuses_without_a_word(_: list[str]) -> int:
    return 2


def _refuses_twice(_: list[str]) -> int:
    print("illama: error: a\nillama: error: b", file=sys.stderr)
    return 2


def _complains_and_goes_on(_: list[str]) -> int:
    print("illama: error: a", file=sys.stderr)
    return 0


def _prints_a_name_as_it_is(_: list[str]) -> int:
    print("class \x1b[31mred")
    return 0


def _answers(_: list[str]) -> int:
    print("fine", Path("out.txt").write_text("in its own folder"))
    return 0


def _refuses(_: list[str]) -> int:
    print("illama: warning\nillama: error: a", file=sys.stderr)
    return 2


def _kind(run: Callable[[list[str]], int], wall_s: float = 60) -> Kind:
    def build(case: Case, _: object) -> None:
        case.words = [str(case.victim)]

    return Kind(build, 1, run, wall_s)


FORBIDDEN = {
    "raises": _kind(_raises),
    "shows a traceback": _kind(_shows_a_traceback),
    "raises in a thread": _kind(_raises_at_the_very_end),
    "ends itself": _kind(_ends_itself),
    "waits": _kind(_waits, _SOON_S),
    "works without end": _kind(_works_without_end, _SOON_S),
    "eats memory": _kind(_eats),
    "writes outside": _kind(_writes_outside),
    "writes beside": _kind(_writes_beside),
    "makes a file outside": _kind(_makes_a_file_outside),
    "removes an input": _kind(_removes_an_input),
    "ends with 1": _kind(_ends_with_one),
    "refuses without a word": _kind(_refuses_without_a_word),
    "refuses twice": _kind(_refuses_twice),
    "complains and goes on": _kind(_complains_and_goes_on),
    "prints a name as it is": _kind(_prints_a_name_as_it_is),
    "answers": _kind(_answers),
    "refuses": _kind(_refuses),
}
