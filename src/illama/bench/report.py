"""A benchmark in numbers (rows of a group, groups of a report), and as tables, Markdown, JSON and a chart.

Fields have their names in the JSON file.
"""

from __future__ import annotations

import io
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from illama.bench.interleave import Case, Rounds, Spread
from illama.bench.machine import OTHERS_LIMIT, Ceilings, free_memory, measure_ceilings
from illama.console import Terminal
from illama.console.progress import WorkProgress
from illama.console.table import terminal_table
from illama.console.text import as_json
from illama.device import Precision
from illama.errors import UserError
from illama.report import Block, Bullets, Document, Section, Table, markdown
from illama.report.formats import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from illama.system.environment import environment
from illama.system.files import remove, write_file

GIB, MIB = 1 << 30, 1 << 20
PIPED_WIDTH = 120  # characters of a line where there is no terminal, and from where on a terminal gets all columns


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


def print_report(report: Report) -> None:
    """The report on stdout: one table for each group."""
    console = Terminal(piped_width=PIPED_WIDTH)
    wide = console.width >= PIPED_WIDTH
    for group in report.groups:
        console.print(f"\n{group.title}", style="bold")
        table = _for_terminal(report, group, wide=wide)
        console.print(terminal_table(table.header, table.rows))
        for line in _group_lines(group):
            console.print(line)
        if group.profile_s:
            profile = _profile(group)
            console.print(terminal_table(profile.header, profile.rows))
    summary = _summary(report)
    if len(summary.rows) > 1:
        rows = [cells if wide else [cell.replace(" (", "\n(") for cell in cells] for cells in summary.rows]
        console.print("\nall together", style="bold")
        console.print(terminal_table(summary.header, rows))
    console.print()
    for line in (*_ceiling_lines(report), *report.lines):
        console.print(line)


def write_report(report: Report, folder: Path, *, chart: bool = True) -> list[Path]:
    """Write `<what>.md`, `<what>.json` and, where there are ratios, `<what>.png` into a folder that is made if absent.

    Each file is replaced as a whole.

    Args:
        report: What was measured.
        folder: Where to write.
        chart: Whether the picture is wanted, which takes its time; one of other numbers is removed.

    Raises:
        UserError: The folder cannot be written to.
    """
    check_folder(folder)
    files = {".md": as_markdown(report), ".json": as_json(report.to_dict())}
    contents = {f"{report.what}{suffix}": text.encode() for suffix, text in files.items()}
    picture = f"{report.what}.png"
    if chart and any(row.ratio is not None for group in report.groups for row in group.cases):
        contents[picture] = draw_ratios(report)
    try:
        if picture not in contents:
            remove(folder / picture)
        for name, content in contents.items():
            write_file(folder / name, content)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    return [folder / name for name in contents]


def check_folder(folder: Path | None) -> None:
    """Make the folder for the report before anything is measured.

    Raises:
        UserError: It cannot be made or written to.
    """
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"--out {folder} cannot be written to; give another folder")


def as_markdown(report: Report) -> str:
    """The whole report as Markdown: what was measured, on what, how to do it again."""
    made = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version is not None)
    memory = f"{made['memory_bytes'] / GIB:.0f} GiB memory" if made["memory_bytes"] else "memory unknown"
    how = Bullets(
        (
            f"{made['processor']}, {made['cpu_cores']} cores, {made['torch_threads']} threads, "
            f"{made['cpu_capability']}, {memory}; device {made['device']}",
            f"{versions}; {made['platform']}; revision {made['git_revision']}",
            *([f"NOT FINISHED: still to be measured were {'; '.join(report.missing)}."] if report.missing else []),
            *_ceiling_lines(report),
            *report.lines,
            "Rounds in rotated order; times are medians over rounds with quartiles in brackets, and a ratio is the "
            "median of the ratios within the rounds. A round in which other processes kept more than "
            f"{OTHERS_LIMIT:.2f} cores busy is made again.",
        )
    )
    summary = _summary(report)
    sections = [Section("", (how,)), *([Section("All together", (summary,))] if len(summary.rows) > 1 else [])]
    for group in report.groups:
        rows = _without_empty_columns(_header(report), [_cells(row) for row in group.cases])
        blocks: list[Block] = [rows, Bullets(tuple(_group_lines(group)))]
        sections.append(Section(group.title, (*blocks, *([_profile(group)] if group.profile_s else []))))
    command = shlex.join(["illama", *made["command"][1:]])
    return markdown(Document(f"illama bench {report.what}", f"`{command}`", tuple(sections)))


def _header(report: Report) -> list[str]:
    floors = ["floor arithmetic, ms", "floor bandwidth, ms"]
    return ["", report.unit, "ms (quartiles)", report.ratio_title, "GFLOP/s", "of ceiling", *floors, "peak memory"]


def _cells(row: CaseRow) -> list[str]:
    share = row.fraction_of_matmul_ceiling
    return [
        f"{row.name} (timed eagerly)" if row.timed_eagerly else row.name,
        _number(row.items_per_s),
        _times(row),
        "" if row.ratio is None else ratio_text(row.ratio),
        _number(row.needed_flops_per_s, 1e-9),
        "" if share is None else f"{100 * share:.0f} %",
        _number(row.arithmetic_floor_s, 1e3),
        _number(row.bandwidth_floor_s, 1e3),
        _memory(row),
    ]


def _for_terminal(report: Report, group: Group, *, wide: bool) -> Table:
    """What fits on a terminal; the files have all columns."""
    floors = ["of\nceiling", "floor ms\nFLOPs", "floor ms\nbytes"]
    header = ["", report.unit, "ms", report.ratio_short, *floors, "peak\nMiB", "GFLOP/s"]
    rows = []
    for row in group.cases:
        name, rate, times, ratio, speed, share, arithmetic, bandwidth, memory = _cells(row)
        if not wide:
            times = times if row.seconds is None else times.split(" ")[0]
            ratio, speed = ratio.replace(" ", "\n"), ""
        rows.append([name, rate, times, ratio, share, arithmetic, bandwidth, memory.removesuffix(" MiB"), speed])
    return _without_empty_columns(header, rows)


def _summary(report: Report) -> Table:
    """One line for each group: its first case and the first one that it is compared with."""
    rows = []
    for group in report.groups:
        own, *others = group.cases
        peer = next((row for row in others if row.ratio is not None), None)
        if group.arithmetic_ratio is None or peer is None or peer.ratio is None:
            continue  # only networks are told in one line, where both have a time
        share = own.fraction_of_matmul_ceiling
        times = [_number(row.seconds.median, 1e3) for row in (own, peer) if row.seconds is not None]
        ratios = ratio_text(peer.ratio), f"{group.arithmetic_ratio:.2f}"
        rows.append(
            (group.title, _number(own.items_per_s), *times, *ratios, "" if share is None else f"{100 * share:.0f} %")
        )
    header = ("", report.unit, "ms", "ms of the peer", report.ratio_title, "arithmetic alone", "of ceiling")
    return Table(header, tuple(rows))


def _without_empty_columns(header: list[str], rows: list[list[str]]) -> Table:
    columns = [at for at in range(len(header)) if any(cells[at] for cells in rows)]
    return Table(tuple(header[at] for at in columns), tuple(tuple(cells[at] for at in columns) for cells in rows))


def _memory(row: CaseRow) -> str:
    if row.peak_bytes is None:  # loading images has no floors and no such column
        return "not measured" if row.needed_flops_per_s is not None else ""
    return f"{_number(row.peak_bytes, 1 / MIB)} MiB"


def ratio_text(ratio: Spread) -> str:
    """A ratio with its quartiles: 1.14 (1.12-1.17)."""
    return f"{ratio.median:.2f} ({ratio.quartile_low:.2f}-{ratio.quartile_high:.2f})"


def _times(row: CaseRow) -> str:
    if row.seconds is None:
        return "" if row.failure is None else row.failure.partition(" (")[0]  # all of it stands below the table
    median, low, high = (
        _number(value, 1e3) for value in (row.seconds.median, row.seconds.quartile_low, row.seconds.quartile_high)
    )
    return f"{median} ({low}-{high})"


def _number(value: float | None, unit: float = 1.0) -> str:
    """Three digits that mean something, without exponents; nothing for None."""
    if value is None:
        return ""
    value *= unit
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _group_lines(group: Group) -> list[str]:
    rounds = group.rounds
    text = f"{rounds.made} rounds"
    if rounds.others:
        others = Spread.of(rounds.others)
        text += f"; other processes kept {others.median:.2f} cores busy (median, highest {max(rounds.others):.2f})"
    if rounds.repeated:
        text += f"; {rounds.repeated} rounds made again because others were busy"
    lines = [text] if rounds.made else []
    lines += [f"{row.name}: {row.failure}" for row in group.cases if row.failure is not None]
    lines += [f"{name}: timed eagerly, with what the host does: {why}" for name, why in rounds.eager.items()]
    if rounds.disturbed:
        lines.append(
            f"DISTURBED: in {rounds.disturbed} of {rounds.made} rounds others kept more than {OTHERS_LIMIT:.2f} cores "
            "busy; measure again on a quiet machine"
        )
    if group.arithmetic_ratio is not None:
        lines.append(f"arithmetic alone would give {group.arithmetic_ratio:.3f}")
    return [*lines, *group.notes]


def _ceiling_lines(report: Report) -> list[str]:
    ceilings = report.ceilings
    if ceilings is None:
        return []
    products = ", ".join(
        f"{precision} {speed / 1e9:,.0f} GFLOP/s ({ceilings.matmul[precision]})"
        for precision, speed in ceilings.matmul_flops_per_s.items()
    )
    buffers = ceilings.bytes_per_s_by_buffer_bytes.items()
    memory = ", ".join(f"{size >> 20} MiB {speed / 1e9:,.0f}" for size, speed in buffers)
    lines = [f"Measured ceilings: matrix products {products}; memory in GB/s by buffer: {memory}."]
    others = ceilings.busy_cores_of_others
    if others is not None and others > OTHERS_LIMIT:
        lines.append(
            f"DISTURBED: while the ceilings were measured others kept {others:.2f} cores busy; they are too low, and "
            "the shares of the ceiling too high."
        )
    return lines


def _profile(group: Group) -> Table:
    """Kinds of work as rows, cases as columns: ms per call and share."""
    profiles = group.profile_s.values()
    kinds = {kind for profile in profiles for kind in profile}
    rows = []
    for kind in sorted(kinds, key=lambda kind: -max(profile.get(kind, 0.0) for profile in profiles)):
        parts = [(profile.get(kind, 0.0), sum(profile.values()) or 1.0) for profile in profiles]
        rows.append((kind, *(f"{_number(own, 1e3)} ({100 * own / total:.0f} %)" for own, total in parts)))
    rows.append(("all", *(_number(sum(profile.values()), 1e3) for profile in profiles)))
    return Table(("ms", *group.profile_s), tuple(rows))


def draw_ratios(report: Report) -> bytes:
    """Horizontal bars, one for each row that has a ratio, with quartiles; equality is a line. A PNG file's bytes."""
    colors = (BLUE, ORANGE, GREEN, PURPLE, SKY, GREY)
    bars = [(group, row, row.ratio) for group in report.groups for row in group.cases if row.ratio is not None]
    names = list(dict.fromkeys(row.name for _, row, _ in bars))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (group, row, ratio) in enumerate(bars):
        labels = axes.get_legend_handles_labels()[1]
        error = [[ratio.median - ratio.quartile_low], [ratio.quartile_high - ratio.median]]
        color = colors[names.index(row.name) % len(colors)]
        label = None if row.name in labels else row.name
        axes.barh(place, ratio.median, 0.7, xerr=error, color=color, label=label, error_kw={"capsize": 3})
        end = (ratio.quartile_high, place)
        axes.annotate(f"{ratio.median:.2f}", end, (5, 0), textcoords="offset points", va="center")
        if group.cases[1] is row and group.arithmetic_ratio is not None:
            mark = "what arithmetic alone would give"
            axes.plot(group.arithmetic_ratio, place, "k|", markersize=18, label=None if mark in labels else mark)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [group.title for group, _, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(ratio.quartile_high for _, _, ratio in bars))
    axes.set_xlabel(f"{report.ratio_title} (median and quartiles of the rounds)")
    axes.set_title(f"illama bench {report.what}, {report.environment['processor']}, {report.environment['device']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
