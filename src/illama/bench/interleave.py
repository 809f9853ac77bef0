"""Timing several things side by side: rounds in rotated order, so that whatever changes slowly hits all alike.

A machine's clock, temperature and neighbours change within seconds. Two separate timings therefore compare moments,
not programs. Here every round times each case once, a case's ratio to another is formed within the round, and a result
is the median over rounds with its quartiles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from illama.bench.load import OTHERS_LIMIT, OtherLoad
from illama.timers import Timer

WARMUP_CALLS = 2  # after the first call, which may compile
ROUND_S = 0.6  # least length of a round: shorter ones cannot be told from the clock ticks of /proc/stat
FEWEST_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        name: What it is called in tables.
        run: One call; its result is dropped.
        items: Images (or sequences) per call.
        flops: Floating-point operations that a call needs, two per multiply-add; None where unknown.
        bytes: Least traffic with memory per call; None where unknown.
        working_set: Bytes that a cache would have to hold to replace memory; None where unknown.
    """

    name: str
    run: Callable[[], object]
    items: int = 1
    flops: float | None = None
    bytes: float | None = None
    working_set: float | None = None


@dataclass(frozen=True)
class Effort:
    """How long to measure a group of cases.

    Attributes:
        seconds: Time for the rounds of a group; at least `FEWEST_ROUNDS` rounds are made.
        rounds: Exactly so many rounds instead.
    """

    seconds: float = 15.0
    rounds: int | None = None


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        return {"median": self.median, "quartile_low": self.low, "quartile_high": self.high}


@dataclass
class Rounds:
    """What the rounds of one group found.

    Attributes:
        seconds: Case name -> seconds per call, one value for each round.
        others: CPU cores that other processes kept busy during each round; empty where it cannot be known.
        repeated: Rounds that were thrown away and made again because others were busy.
        disturbed: Kept rounds in which others were busy: the machine did not become quiet.
        calls: Case name -> calls per round.
        first_call_s: Case name -> seconds of the very first call, compilation included.
    """

    seconds: dict[str, list[float]]
    others: list[float] = field(default_factory=list)
    repeated: int = 0
    disturbed: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    first_call_s: dict[str, float] = field(default_factory=dict)

    def time(self, name: str) -> Spread:
        """Seconds per call of a case."""
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, over: str) -> Spread:
        """How many times faster `name` is than `over`, formed in each round; above 1 it is faster."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return Spread.of([other / own for own, other in pairs])

    def to_dict(self) -> dict[str, Any]:
        return {
            "rounds": len(next(iter(self.seconds.values()))),
            "seconds_per_call": self.seconds,
            "calls_per_round": self.calls,
            "first_call_s": self.first_call_s,
            "busy_cores_of_others": self.others,
            "rounds_repeated": self.repeated,
            "rounds_disturbed": self.disturbed,
        }


def measure(
    cases: Sequence[Case],
    effort: Effort,
    *,
    timer: Timer,
    load: OtherLoad | None = None,
    on_progress: Callable[[float, str], None] = lambda share, doing: None,
    calls: Mapping[str, int] | None = None,
) -> Rounds:
    """Time the cases in rounds, each once per round, the order rotated from round to round.

    A round during which other processes kept more than `OTHERS_LIMIT` of a core busy is made again, as long as no more
    than half of all rounds were; after that it is kept and counted as disturbed.

    Args:
        cases: At least one, with different names.
        effort: How long.
        timer: The device's clock.
        load: Looks at other processes; None does not look.
        on_progress: Told the share of the work done, 0 to 1, and what happens now.
        calls: Calls per round of each case; chosen by the time of a call when None.
    """
    found = Rounds({case.name: [] for case in cases}, calls=dict(calls or {}))
    planned = _warm_up(cases, effort, timer, found, on_progress)
    made = 0
    while made < planned:
        shift = made % len(cases)
        order = [*cases[shift:], *cases[:shift]]
        before = None if load is None else load.look()
        times = {case.name: timer.seconds(case.run, found.calls[case.name]) for case in order}
        others = None if load is None or before is None else load.since(before)
        busy = others is not None and others > OTHERS_LIMIT
        if busy and found.repeated < planned:
            found.repeated += 1
            on_progress(made / planned, "repeating a round: other processes are busy")
            continue
        made += 1
        found.disturbed += busy
        if others is not None:
            found.others.append(others)
        for name, seconds in times.items():
            found.seconds[name].append(seconds / found.calls[name])
        on_progress(made / planned, f"round {made} of {planned}")
    return found


def _warm_up(
    cases: Sequence[Case],
    effort: Effort,
    timer: Timer,
    found: Rounds,
    on_progress: Callable[[float, str], None],
) -> int:
    """Call every case until it is warm, choose calls per round, and return the number of rounds."""
    share, round_s = ROUND_S / len(cases), 0.0
    for case in cases:
        on_progress(0.0, f"first call of {case.name}")
        found.first_call_s[case.name] = timer.seconds(case.run, 1)
        calls = found.calls.get(case.name, WARMUP_CALLS)
        seconds = timer.seconds(case.run, calls) / calls
        chosen = found.calls.setdefault(case.name, max(1, math.ceil(share / max(seconds, 1e-7))))
        round_s += seconds * chosen
    if effort.rounds is not None:
        return effort.rounds
    return max(FEWEST_ROUNDS, round(effort.seconds / max(round_s, 1e-9)))
