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

from illama.bench.machine import OTHERS_LIMIT, OtherLoad, unless_out_of_memory
from illama.device.timers import CannotCapture, Graphs, Timer

WARMUP_CALLS = 2  # after the first call, which may compile
ROUND_S = 0.6  # least length of a round: shorter ones cannot be told from the clock ticks of /proc/stat
FEWEST_ROUNDS = 5
GRAPH_CALLS, GRAPH_S = 20, 0.01  # a graph holds so many calls, fewer where they take longer than that together


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
    quartile_low: float
    quartile_high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


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
        failures: Case name -> why it could not be measured: there was no memory for it.
        eager: Case name -> why it could not be captured in a graph, where the others were.
    """

    seconds: dict[str, list[float]]
    others: list[float] = field(default_factory=list)
    repeated: int = 0
    disturbed: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    first_call_s: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    eager: dict[str, str] = field(default_factory=dict)

    @property
    def made(self) -> int:
        """The number of rounds."""
        return max((len(times) for times in self.seconds.values()), default=0)

    def time(self, name: str) -> Spread:
        """Seconds per call of a case."""
        return Spread.of(self.seconds[name])

    def speedup(self, name: str, over: str) -> Spread | None:
        """How many times faster `name` is than `over`, formed in each round; above 1 it is faster.

        None where one of them could not be measured.
        """
        if name not in self.seconds or over not in self.seconds:
            return None
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return Spread.of([other / own for own, other in pairs])

    def to_dict(self) -> dict[str, Any]:
        return {
            "rounds": self.made,
            "seconds_per_call": self.seconds,
            "calls_per_round": self.calls,
            "first_call_s": self.first_call_s,
            "busy_cores_of_others": self.others,
            "rounds_repeated": self.repeated,
            "rounds_disturbed": self.disturbed,
            "not_measured": self.failures,
            "timed_eagerly": self.eager,
        }


def measure(
    cases: list[Case],
    effort: Effort,
    *,
    timer: Timer,
    load: OtherLoad | None = None,
    on_progress: Callable[[float, str], None] = lambda share, doing: None,
    calls: Mapping[str, int] | None = None,
    graphs: Graphs | None = None,
    on_failure: Callable[[str], None] = lambda name: None,
) -> Rounds:
    """Time the cases in rounds, each once per round, the order rotated from round to round.

    A round during which other processes kept more than `OTHERS_LIMIT` of a core busy is made again, as long as no more
    than half of all rounds were; after that it is kept and counted as disturbed. A case for which there is no memory
    is left out from then on, and the others go on.

    Args:
        cases: At least one, with different names. A case for which there is no memory is taken out of the list, so
            that its tensors are freed.
        effort: How long.
        timer: The device's clock.
        load: Looks at other processes; None does not look.
        on_progress: Told the share of the work done, 0 to 1, and what happens now.
        calls: Calls per round of each case; chosen by the time of a call when None.
        graphs: Makes a graph of each case, which is timed instead of calls from the host; a case that no graph can
            hold is called. None calls all of them.
        on_failure: Told the name of a case for which there is no memory; lets go of what else holds its tensors.
    """
    group = _Group(cases, timer, Rounds({case.name: [] for case in cases}, calls=dict(calls or {})), on_failure)
    rounds = group.rounds
    planned = _warm_up(group, effort, graphs, on_progress)
    made = 0
    while group.cases and made < planned:
        names = [case.name for case in group.cases]
        shift = made % len(names)
        before = None if load is None else load.look()
        times = {name: group.time(name) for name in (*names[shift:], *names[:shift])}
        if not times.keys() <= rounds.seconds.keys():
            continue  # the rest of this round had more memory than the start
        others = None if load is None or before is None else load.since(before)
        busy = others is not None and others > OTHERS_LIMIT
        if busy and rounds.repeated < planned:
            rounds.repeated += 1
            on_progress(made / planned, "repeating a round: other processes are busy")
            continue
        made += 1
        rounds.disturbed += busy
        if others is not None:
            rounds.others.append(others)
        for name, seconds in times.items():
            rounds.seconds[name].append(seconds)
        on_progress(made / planned, f"round {made} of {planned}")
    return rounds


@dataclass
class _Ready:
    """What is timed of a case: `run` makes `calls` calls of it, and is run `runs` times in a round."""

    run: Callable[[], object]
    calls: int = 1
    runs: int = 1


class _Group:
    """The cases that are still measured. None of its methods leaves a reference to a case that has failed.

    Args:
        cases: All of them; those that fail are taken out.
        timer: The device's clock.
        rounds: Where results go.
        on_failure: As in `measure`.
    """

    def __init__(self, cases: list[Case], timer: Timer, rounds: Rounds, on_failure: Callable[[str], None]) -> None:
        self.cases, self.rounds = cases, rounds
        self._timer, self._on_failure = timer, on_failure
        self._ready = {case.name: _Ready(case.run) for case in cases}

    def time(self, name: str) -> float:
        """Seconds per call in one round; NaN where there was no memory for it."""
        runs, calls = self._ready[name].runs, self._ready[name].calls
        return self.seconds(name, runs) / (runs * calls)

    def seconds(self, name: str, runs: int) -> float:
        """Seconds of so many runs; NaN where there was no memory for them."""
        with unless_out_of_memory(lambda why: self._fail(name, why)):
            return self._timer.seconds(self._ready[name].run, runs)
        return math.nan

    def capture(self, name: str, graphs: Graphs) -> None:
        """Put a graph in the place of the calls."""
        seconds = self.seconds(name, WARMUP_CALLS) / WARMUP_CALLS
        if name in self.rounds.failures:
            return
        calls = max(1, min(GRAPH_CALLS, round(GRAPH_S / max(seconds, 1e-7))))
        with unless_out_of_memory(lambda why: self._fail(name, why)):
            try:
                self._ready[name] = _Ready(graphs.capture(self._ready[name].run, calls), calls)
            except CannotCapture as error:
                self.rounds.eager[name] = str(error)

    def choose_runs(self, name: str, share_s: float) -> float:
        """Warm up, and choose how often to run in a round, of which the case has a share; seconds of that."""
        rounds = self.rounds
        runs = rounds.calls.get(name, WARMUP_CALLS)
        seconds = self.seconds(name, runs) / runs
        if name in rounds.failures:
            return 0.0
        ready = self._ready[name]
        ready.runs = rounds.calls.get(name) or max(1, math.ceil(share_s / max(seconds, 1e-7)))
        rounds.calls[name] = ready.runs * ready.calls
        return seconds * ready.runs

    def _fail(self, name: str, why: str) -> None:
        rounds = self.rounds
        rounds.failures[name] = why
        for of_cases in (self._ready, rounds.seconds, rounds.calls, rounds.eager, rounds.first_call_s):
            of_cases.pop(name, None)
        self.cases[:] = [case for case in self.cases if case.name != name]
        self._on_failure(name)


def _warm_up(group: _Group, effort: Effort, graphs: Graphs | None, on_progress: Callable[[float, str], None]) -> int:
    """Call every case until it is warm, choose calls per round, and return the number of rounds."""
    names = [case.name for case in group.cases]
    share_s, round_s = ROUND_S / len(names), 0.0
    for name in names:
        on_progress(0.0, f"first call of {name}")
        first_s = group.seconds(name, 1)
        if name in group.rounds.failures:
            continue
        group.rounds.first_call_s[name] = first_s
        if graphs is not None:
            group.capture(name, graphs)
        if name not in group.rounds.failures:
            round_s += group.choose_runs(name, share_s)
    if effort.rounds is not None:
        return effort.rounds
    return max(FEWEST_ROUNDS, round(effort.seconds / max(round_s, 1e-9)))
