"""The line for people: fits, drops the least important first, and guesses the end from steps and pauses apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from illama.console.text import duration
from illama.training import log
from illama.training.log import TimeLeft, fitted, summary

RECORD: dict[str, Any] = {
    "kind": "train",
    "step": 320,
    "epoch": 3.2,
    "loss": 1.2344,
    "lr": 3.1e-4,
    "softness": 0.4,
    "images_per_s": 811.9,
    "data_wait": 0.02,
    "mfu": 0.231,
    "memory_gb": 1.44,
}
FULL = "epoch 3.2/30  loss 1.234  812 images/s  data wait 2 %  MFU 23 %  1.4 GB  lr 3.1e-04  softness 0.40  ETA 12 min"


def test_the_whole_line() -> None:
    assert fitted(summary(RECORD, 30), "ETA 12 min", 200) == FULL


def test_what_is_unknown_is_left_out() -> None:
    known = {key: value for key, value in RECORD.items() if key != "memory_gb"} | {"mfu": None}
    assert summary(known, 30) == "epoch 3.2/30  loss 1.234  812 images/s  data wait 2 %  lr 3.1e-04  softness 0.40"


@pytest.mark.parametrize("width", range(1, len(FULL) + 2))
def test_never_wider_and_the_time_left_stays(width: int) -> None:
    line = fitted(summary(RECORD, 30), "ETA 12 min", width)
    assert len(line) <= width
    parts, whole = line.split("  "), FULL.split("  ")
    if width >= len("epoch 3.2/30  ETA 12 min"):
        assert parts == [*whole[: len(parts) - 1], "ETA 12 min"]
        missing = whole[len(parts) - 1]
        assert len(parts) == len(whole) or len(line) + 2 + len(missing) > width, "another part would have fitted"
    else:
        assert "epoch 3.2/30".startswith(line)


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 9.96, 89.4, 90, 5399, 5400, 86400)] == [
        "0.0 s",
        "10.0 s",
        "89 s",
        "2 min",
        "90 min",
        "1.5 h",
        "24.0 h",
    ]


class Clock:
    """Time that passes when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(log, "time", SimpleNamespace(monotonic=lambda: self.now))

    def make(self, left: TimeLeft, steps: range, step_s: float, eval_every: int = 0, eval_s: float = 0.0) -> None:
        for step in steps:
            self.now += step_s
            left.step_done(step)
            if eval_every and step % eval_every == 0:
                self.now += eval_s
                left.evaluation_done()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_evaluations_are_counted(clock: Clock) -> None:
    left = TimeLeft(0, 100, 10)
    assert left.seconds() is None
    clock.make(left, range(1, 26), 2.0, eval_every=10, eval_s=30.0)
    assert left.seconds() == pytest.approx(75 * 2.0 + 8 * 30.0)


def test_a_sitting_that_begins_before_an_evaluation_is_not_frightened(clock: Clock) -> None:
    """Two steps and an evaluation of 600 s: steps do not take 300 s each."""
    left = TimeLeft(99, 1000, 100)
    clock.now += 60  # compiles
    left.step_done(100)
    clock.now += 600
    left.evaluation_done()
    clock.make(left, range(101, 104), 1.0)
    assert left.seconds() == pytest.approx(897 * 1.0 + 9 * 600)


def test_after_a_resume_only_this_sitting_counts(clock: Clock) -> None:
    left = TimeLeft(900, 1000, 1000)
    clock.make(left, range(901, 911), 3.0)
    assert left.seconds() == pytest.approx(90 * 3.0)


def test_the_first_step_counts_until_there_is_another(clock: Clock) -> None:
    left = TimeLeft(0, 11, 100)
    clock.make(left, range(1, 2), 50.0)
    assert left.seconds() == pytest.approx(10 * 50.0)
    clock.make(left, range(2, 3), 1.0)
    assert left.seconds() == pytest.approx(9 * 1.0)


@pytest.mark.parametrize("every", [3, 4, 5, 7, 20])
def test_the_last_step_is_evaluated_in_any_case(clock: Clock, every: int) -> None:
    """10 steps, 3 done and evaluated."""
    left = TimeLeft(2, 10, every)
    clock.make(left, range(3, 4), 0.0)
    clock.now += 100
    left.evaluation_done()
    evaluated = {step for step in range(4, 11) if step % every == 0} | {10}
    assert left.seconds() == pytest.approx(100 * len(evaluated))


def test_a_rate_that_changes_is_followed(clock: Clock) -> None:
    left = TimeLeft(0, 100_000, 100_000)
    clock.make(left, range(1, 5001), 1.0)
    clock.make(left, range(5001, 10_001), 3.0)
    seconds = left.seconds()
    assert seconds is not None
    assert seconds / 90_000 == pytest.approx(3.0, rel=0.01)
