"""Progress on stderr: a line now and then where there is no terminal, nothing for short work, a bar on a terminal."""

from __future__ import annotations

import os
import sys
import time

import pytest

from illama.console import progress as module
from illama.console.progress import WorkProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_lines_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("writing", 4000) as progress:
        for seconds, amount in ((1.0, 500), (19.0, 500), (21.0, 1000), (40.0, 2000)):
            clock[0] = 100.0 + seconds
            progress.advance(amount)
        progress.say("a\x1b[2Jb")
    assert capsys.readouterr().err.splitlines() == [
        "writing: 1,000 of 4,000 images, 25 %, ETA 57 s",
        "a\\x1b[2Jb",
    ]


def test_bytes_and_parts(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("writing", 3_000_000, "bytes") as work, WorkProgress("ceilings", 2, None) as parts:
        clock[0] = 115.0
        work.advance(1_500_000)
        parts.tell(0.0, "building", "tiny")
        parts.advance(1)
        clock[0] = 130.0
        parts.tell(0.5, "round 2 of 4")
    assert capsys.readouterr().err.splitlines() == [
        "writing: 1.5 MB of 3.0 MB, 50 %, ETA 15 s",
        "tiny: building, 0 %",
        "tiny: round 2 of 4, 75 %, ETA 10 s",
    ]


def test_short_work_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("reading", 10) as progress:
        progress.advance(10)
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="terminals of POSIX")
@pytest.mark.parametrize(("patience_s", "drawn"), [(0.0, True), (60.0, False)])
def test_a_terminal_has_a_bar_after_a_while(patience_s: float, drawn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(module, "PATIENCE_S", patience_s)
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with WorkProgress("reading", 10) as progress:
            progress.advance(4)
        os.set_blocking(ours, False)
        try:
            said = os.read(ours, 1 << 16).decode()
        except BlockingIOError:
            said = ""
    os.close(ours)
    assert ("4 of 10 images" in said) == drawn
