"""What a benchmark found, in numbers: rows of a group, groups of a report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from illama.bench.interleave import Case, Rounds, Spread
from illama.bench.machine import Ceilings
from illama.errors import UserError


@dataclass(frozen=True)
class CaseRow:
    """One case of a group.

    Attributes:
        name: What was timed.
        time_s: Seconds per call; None where it could not be measured.
        items_per_s: Images (sequences) per second, from the median.
        ratio: The comparison that the report's `ratio_title` names; None for the one compared with.
        flops_per_s: Needed operations over the median time.
        utilization: Share of the measured matmul ceiling (MFU).
        arithmetic_floor_s, bandwidth_floor_s: What the needed operations, and the least traffic, take at the ceilings.
        peak_bytes: Memory at the peak of a call: weights, optimizer state and what the call takes.
        parameters: Parameters of the network.
        failure: Why it could not be measured.
        eager: Whether the host's part is in the times, where that of the others is not (CUDA graphs).
    """

    name: str
    time_s: Spread | None
    items_per_s: float | None
    ratio: Spread | None = None
    flops_per_s: float | None = None
    utilization: float | None = None
    arithmetic_floor_s: float | None = None
    bandwidth_floor_s: float | None = None
    peak_bytes: int | None = None
    parameters: int | None = None
    failure: str | None = None
    eager: bool = False

    @classmethod
    def failed(cls, name: str, why: str) -> CaseRow:
        """A case that could not be measured."""
        return cls(name, None, None, failure=why)

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seconds": None if self.time_s is None else self.time_s.to_dict(),
            "items_per_s": self.items_per_s,
            "ratio": None if self.ratio is None else self.ratio.to_dict(),
            "needed_flops_per_s": self.flops_per_s,
            "fraction_of_matmul_ceiling": self.utilization,
            "arithmetic_floor_s": self.arithmetic_floor_s,
            "bandwidth_floor_s": self.bandwidth_floor_s,
            "peak_bytes": self.peak_bytes,
            "parameters": self.parameters,
            "failure": self.failure,
            "timed_eagerly": self.eager,
        }


@dataclass(frozen=True)
class Group:
    """Cases that were measured side by side.

    Attributes:
        title: What they have in common: "tiny, batch 16, float32".
        rows: The cases.
        rounds: Every single time.
        notes: Lines for the reader: what was left out and why.
        arithmetic_ratio: Needed operations of the first peer over ours: the ratio that arithmetic alone would give.
        profile: Case -> kind of work -> seconds per call.
    """

    title: str
    rows: tuple[CaseRow, ...]
    rounds: Rounds
    notes: tuple[str, ...] = ()
    arithmetic_ratio: float | None = None
    profile: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "cases": [row.to_dict() for row in self.rows],
            "arithmetic_ratio": self.arithmetic_ratio,
            "notes": list(self.notes),
            "profile_s": self.profile,
            "rounds": self.rounds.to_dict(),
        }


@dataclass(frozen=True)
class Report:
    """A whole benchmark.

    Attributes:
        what: "attention", "model", "train" or "data".
        unit: What `items_per_s` counts: "images/s".
        ratio_title: What a row's ratio says.
        ratio_short: The same above a narrow column.
        groups: The measurements.
        ceilings: What the machine reaches at best; None where nothing is compared with it.
        environment: Hardware, versions, command.
        lines: How it was measured, for the reader.
        missing: Titles of groups that are not measured yet.
    """

    what: str
    unit: str
    ratio_title: str
    ratio_short: str
    groups: tuple[Group, ...]
    ceilings: Ceilings | None
    environment: dict[str, Any]
    lines: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    def with_group(self, group: Group) -> Report:
        """The same with one more of the groups that are still missing."""
        missing = tuple(title for title in self.missing if title != group.title)
        return replace(self, groups=(*self.groups, group), missing=missing)

    def demand_a_time(self, advice: str) -> None:
        """Refuse a report in which nothing could be measured.

        Args:
            advice: What to do.

        Raises:
            UserError: There is no time in it.
        """
        rows = [(group.title, row) for group in self.groups for row in group.rows]
        if any(row.time_s is not None for _, row in rows):
            return
        title, row = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise UserError(f"{title}: {row.name}: {row.failure}{more}; {advice}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": f"illama bench {self.what}",
            "unit": self.unit,
            "ratio": self.ratio_title,
            "environment": self.environment,
            "ceilings": None if self.ceilings is None else self.ceilings.to_dict(),
            "notes": list(self.lines),
            "groups_not_measured_yet": list(self.missing),
            "groups": [group.to_dict() for group in self.groups],
        }


def row_of(
    case: Case,
    rounds: Rounds,
    ceilings: Ceilings | None,
    precision: str,
    *,
    ratio: Spread | None = None,
    peak_bytes: int | None = None,
    parameters: int | None = None,
) -> CaseRow:
    """A case's times beside its floors."""
    time_s = rounds.time(case.name)
    flops_per_s = None if case.flops is None else case.flops / time_s.median
    utilization = arithmetic = bandwidth = None
    if ceilings is not None and case.flops is not None and flops_per_s is not None:
        arithmetic = ceilings.arithmetic_floor_s(case.flops, precision)
        utilization = flops_per_s / ceilings.flops_per_s[precision]
    if ceilings is not None and case.bytes is not None:
        bandwidth = ceilings.bandwidth_floor_s(case.bytes, case.working_set or case.bytes)
    return CaseRow(
        case.name,
        time_s,
        case.items / time_s.median,
        ratio,
        flops_per_s,
        utilization,
        arithmetic,
        bandwidth,
        peak_bytes,
        parameters,
        eager=case.name in rounds.eager,
    )
