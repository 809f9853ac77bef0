"""What a benchmark found, in numbers: rows of a group, groups of a report. Fields have their names in the JSON file."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from typing import Any

import torch

from illama.bench.interleave import Case, Rounds, Spread
from illama.bench.machine import Ceilings, free_memory, measure_ceilings
from illama.console.progress import WorkProgress
from illama.device import Precision
from illama.errors import UserError
from illama.system.environment import environment


@dataclass(frozen=True)
class CaseRow:
    """One case of a group.

    Attributes:
        name: What was timed.
        seconds: Per call; None where it could not be measured.
        items_per_s: Images (sequences) per second, from the median.
        ratio: The comparison that the report's `ratio_title` names; None for the one compared with.
        needed_flops_per_s: Needed operations over the median time.
        fraction_of_matmul_ceiling: Of the measured one (MFU).
        arithmetic_floor_s, bandwidth_floor_s: What the needed operations, and the least traffic, take at the ceilings.
        peak_bytes: Memory at the peak of a call: weights, optimizer state and what the call takes.
        parameters: Parameters of the network.
        failure: Why it could not be measured.
        timed_eagerly: Whether the host's part is in the times, where that of the others is not (CUDA graphs).
    """

    name: str
    seconds: Spread | None = None
    items_per_s: float | None = None
    ratio: Spread | None = None
    needed_flops_per_s: float | None = None
    fraction_of_matmul_ceiling: float | None = None
    arithmetic_floor_s: float | None = None
    bandwidth_floor_s: float | None = None
    peak_bytes: int | None = None
    parameters: int | None = None
    failure: str | None = None
    timed_eagerly: bool = False

    @classmethod
    def of(cls, case: Case, rounds: Rounds, ceilings: Ceilings | None, precision: str, **more: Any) -> CaseRow:
        """A case's times beside its floors.

        Args:
            case: One that was measured.
            rounds: Its times.
            ceilings: What the floors follow from; None leaves them out.
            precision: Of its products.
            more: Further fields.
        """
        seconds = rounds.time(case.name)
        speed = None if case.flops is None else case.flops / seconds.median
        floors: dict[str, Any] = {}
        if ceilings is not None and case.flops is not None:
            peak = ceilings.matmul_flops_per_s[precision]
            floors |= {"arithmetic_floor_s": case.flops / peak, "fraction_of_matmul_ceiling": (speed or 0.0) / peak}
        if ceilings is not None and case.bytes is not None:
            floors["bandwidth_floor_s"] = case.bytes / ceilings.bandwidth(case.working_set or case.bytes)
        return cls(
            case.name,
            seconds,
            case.items / seconds.median,
            needed_flops_per_s=speed,
            timed_eagerly=case.name in rounds.eager,
            **floors,
            **more,
        )


@dataclass(frozen=True)
class Group:
    """Cases that were measured side by side.

    Attributes:
        title: What they have in common: "tiny, batch 16, float32".
        cases: One row for each.
        rounds: Every single time.
        notes: Lines for the reader: what was left out and why.
        arithmetic_ratio: Needed operations of the first peer over ours: the ratio that arithmetic alone would give.
        profile_s: Case -> kind of work -> seconds per call.
    """

    title: str
    cases: tuple[CaseRow, ...]
    rounds: Rounds
    notes: tuple[str, ...] = ()
    arithmetic_ratio: float | None = None
    profile_s: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "cases": [asdict(row) for row in self.cases],
            "arithmetic_ratio": self.arithmetic_ratio,
            "notes": list(self.notes),
            "profile_s": self.profile_s,
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
        environment: Hardware, versions, command.
        lines: How it was measured, for the reader.
        groups: The measurements.
        ceilings: What the machine reaches at best; None where nothing is compared with it.
        missing: Titles of groups that are not measured yet.
    """

    what: str
    unit: str
    ratio_title: str
    ratio_short: str
    environment: dict[str, Any]
    lines: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    ceilings: Ceilings | None = None
    missing: tuple[str, ...] = ()

    def demand_a_time(self, advice: str) -> Report:
        """This report, in which something has been measured.

        Args:
            advice: What to do otherwise.

        Raises:
            UserError: There is no time in it.
        """
        rows = [(group.title, row) for group in self.groups for row in group.cases]
        if any(row.seconds is not None for _, row in rows):
            return self
        title, row = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise UserError(f"{title}: {row.name}: {row.failure}{more}; {advice}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "what": f"illama bench {self.what}",
            "unit": self.unit,
            "ratio": self.ratio_title,
            "environment": self.environment,
            "ceilings": None if self.ceilings is None else asdict(self.ceilings),
            "notes": list(self.lines),
            "groups_not_measured_yet": list(self.missing),
            "groups": [group.to_dict() for group in self.groups],
        }


Measurement = Callable[[Ceilings | None, WorkProgress], Group]


def measure_groups(
    report: Report,
    groups: Sequence[tuple[str, Measurement]],
    keep: Callable[[Report], None],
    device: torch.device,
    precisions: tuple[Precision, ...],
) -> Report:
    """Fill a report, group by group.

    Args:
        report: Without groups.
        groups: The title of each, and what measures it.
        keep: Given what there is after each group.
        device: Whose ceilings are measured first.
        precisions: Of the matrix products among the ceilings; none measures no ceilings.
    """
    with WorkProgress("measuring ceilings", len(groups), unit=None) as progress:
        progress.tell(0.0, "building")
        ceilings = measure_ceilings(device, precisions) if precisions else None
        report = replace(report, ceilings=ceilings)
        for number, (title, measure) in enumerate(groups, start=1):
            progress.tell(0.0, "building", title)
            group = measure(ceilings, progress)
            missing = tuple(title for title, _ in groups[number:])
            report = replace(report, groups=(*report.groups, group), missing=missing)
            free_memory()
            keep(report)
            progress.advance(1)
    return report


def bench_environment(device: torch.device) -> dict[str, Any]:
    """What a run folder records, plus what decides speed: memory, Triton, instruction set, the GPU's size."""
    values = environment(device)
    values.pop("working_folder", None)  # serves to continue a run; a report is published
    try:
        values["versions"]["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        values["versions"]["triton"] = None
    values["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    can_tell = hasattr(os, "sysconf")
    values["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if can_tell else None
    if device.type == "cuda":
        values["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        values["cuda"] = torch.version.cuda
    return values
