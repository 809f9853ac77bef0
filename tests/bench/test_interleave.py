"""Rounds and statistics, with a clock that obeys."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from illama.bench.interleave import FEWEST_ROUNDS, ROUND_S, Case, Effort, Spread, measure
from illama.bench.machine import OTHERS_LIMIT, LoadSample, OtherLoad
from tests.bench.conftest import FakeTimer


def cases(count: int) -> list[Case]:
    return [Case(f"case {i}", run) for i, run in enumerate([(lambda i=i: i) for i in range(count)])]


class Neighbours(OtherLoad):
    """Says how busy others were, round by round."""

    def __init__(self, *cores: float) -> None:
        self.cores = list(cores)

    def look(self) -> LoadSample:
        return LoadSample(0.0, 0.0, 0.0)

    def since(self, before: LoadSample) -> float:
        return self.cores.pop(0)


@pytest.mark.parametrize("values", [[3.0], [1.0, 2.0], [random.random() for _ in range(7)]])
def test_spread_is_median_and_quartiles(values: list[float]) -> None:
    spread = Spread.of(values)
    assert [spread.quartile_low, spread.median, spread.quartile_high] == pytest.approx(
        np.percentile(values, [25, 50, 75])
    )


def test_every_round_times_each_case_once_in_rotated_order() -> None:
    measured = cases(3)
    timer = FakeTimer(lambda run: 1.0)
    measure(measured, Effort(rounds=4), timer=timer)
    names = [int(run()) for run, _ in timer.asked]  # type: ignore[call-overload]
    warm_up, rounds = names[:6], names[6:]
    assert warm_up == [0, 0, 1, 1, 2, 2]
    assert rounds == [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]


def test_a_machine_that_slows_down_moves_times_but_no_ratio() -> None:
    slow, fast = cases(2)
    pace = {"now": 1.0, "left": 2}

    def seconds_of(run: Any) -> float:
        if pace["left"] == 0:
            pace.update(now=pace["now"] * 1.5, left=2)
        pace["left"] -= 1
        return pace["now"] * (3.0 if run is slow.run else 1.0)

    found = measure([slow, fast], Effort(rounds=6), timer=FakeTimer(seconds_of))
    assert found.time(slow.name).quartile_high > 2 * found.time(slow.name).quartile_low
    ratio = found.speedup(fast.name, over=slow.name)
    assert [ratio.quartile_low, ratio.median, ratio.quartile_high] == pytest.approx([3.0, 3.0, 3.0])
    assert found.speedup(slow.name, over=fast.name).median == pytest.approx(1 / 3)


def test_calls_fill_a_round_and_rounds_fill_the_time() -> None:
    measured = cases(2)
    timer = FakeTimer(lambda run: 0.001 if run is measured[0].run else 0.1)
    found = measure(measured, Effort(seconds=12.0), timer=timer)
    assert found.calls == {"case 0": round(ROUND_S / 2 / 0.001), "case 1": round(ROUND_S / 2 / 0.1)}
    assert len(found.seconds["case 0"]) == round(12.0 / ROUND_S)
    assert found.seconds["case 1"] == pytest.approx([0.1] * 20)


def test_slow_cases_get_few_rounds_but_never_fewer_than_five() -> None:
    found = measure(cases(2), Effort(seconds=1.0), timer=FakeTimer(lambda run: 100.0))
    assert len(found.seconds["case 0"]) == FEWEST_ROUNDS
    assert found.calls == {"case 0": 1, "case 1": 1}


def test_calls_can_be_prescribed() -> None:
    timer = FakeTimer(lambda run: 0.5)
    found = measure(cases(1), Effort(seconds=30.0), timer=timer, calls={"case 0": 4})
    assert {calls for _, calls in timer.asked[1:]} == {4}
    assert found.seconds["case 0"] == pytest.approx([0.5] * 15)


def test_a_disturbed_round_is_made_again() -> None:
    times = iter([1.0, 1.0, 1.0, 7.0, 2.0, 3.0])
    busy = OTHERS_LIMIT + 0.01
    found = measure(
        cases(1), Effort(rounds=3), timer=FakeTimer(lambda run: next(times)), load=Neighbours(0.0, busy, 0.05, 0.0)
    )
    assert found.seconds["case 0"] == [1.0, 2.0, 3.0]
    assert (found.repeated, found.disturbed) == (1, 0)
    assert found.others == [0.0, 0.05, 0.0]


def test_a_machine_that_never_gets_quiet_is_measured_and_marked() -> None:
    found = measure(cases(1), Effort(rounds=3), timer=FakeTimer(lambda run: 1.0), load=Neighbours(*[1.0] * 6))
    assert (found.repeated, found.disturbed) == (3, 3)
    assert len(found.seconds["case 0"]) == 3


def test_progress_rises_to_one() -> None:
    told: list[float] = []
    measure(
        cases(2),
        Effort(rounds=3),
        timer=FakeTimer(lambda run: 1.0),
        on_progress=lambda share, doing: told.append(share),
    )
    assert told == sorted(told)
    assert told[-1] == 1.0
