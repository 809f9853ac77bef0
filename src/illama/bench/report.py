"""A benchmark as a table for the terminal, as Markdown, as JSON and as a chart."""

from __future__ import annotations

import io
import json
import os
import shlex
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from illama.bench.interleave import Spread
from illama.bench.machine import OTHERS_LIMIT
from illama.bench.results import CaseRow, Group, Report
from illama.console import Terminal
from illama.console.table import terminal_table
from illama.errors import UserError
from illama.system.environment import environment
from illama.system.files import remove, write_file

GIB, MIB = 1 << 30, 1 << 20
PIPED_WIDTH = 120  # characters of a line where there is no terminal, and from where on a terminal gets all columns


def bench_environment(device: torch.device) -> dict[str, Any]:
    """What a run folder records, plus what decides speed: memory, Triton, instruction set, the GPU's size."""
    found = environment(device)
    found.pop("working_folder", None)  # serves to continue a run; a report is published
    try:
        found["versions"]["triton"] = metadata.version("triton")
    except metadata.PackageNotFoundError:
        found["versions"]["triton"] = None
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    known = hasattr(os, "sysconf")
    found["memory_bytes"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if known else None
    if device.type == "cuda":
        found["gpu_memory_bytes"] = torch.cuda.get_device_properties(device).total_memory
        found["cuda"] = torch.version.cuda
    return found


def print_report(report: Report, console: Console | None = None) -> None:
    """The report on stdout: one table for each group."""
    console = console or Terminal()
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    wide = console.width >= PIPED_WIDTH
    for group in report.groups:
        console.print(f"\n{group.title}", style="bold", highlight=False, markup=False)
        console.print(_terminal_table(report, group, wide=wide))
        for line in _group_lines(group):
            console.print(line, highlight=False, markup=False)
        if group.profile:
            console.print(terminal_table(*_profile_rows(group)))
    header, rows = _summary(report)
    if len(rows) > 1:
        rows = rows if wide else [[cell.replace(" (", "\n(") for cell in cells] for cells in rows]
        console.print("\nall together", style="bold")
        console.print(terminal_table(header, rows))
    console.print()
    for line in (*_ceiling_lines(report), *report.lines):
        console.print(line, highlight=False, markup=False)


def _terminal_table(report: Report, group: Group, *, wide: bool) -> Table:
    """What fits on a terminal; the files have all columns."""
    floors = ["of\nceiling", "floor ms\nFLOPs", "floor ms\nbytes"]
    header = ["", report.unit, "ms", report.ratio_short, *floors, "peak\nMiB"] + ["GFLOP/s"] * wide
    rows = []
    for row in group.rows:
        name, rate, times, ratio, speed, share, arithmetic, bandwidth, memory = _cells(row)
        if not wide:
            times = times if row.time_s is None else times.split(" ")[0]
            ratio, speed = ratio.replace(" ", "\n"), ""
        rows.append([name, rate, times, ratio, share, arithmetic, bandwidth, memory.removesuffix(" MiB"), speed])
    return terminal_table(*_without_empty_columns(header, rows))


def _summary(report: Report) -> tuple[list[str], list[list[str]]]:
    """One line for each group: its first case and the first one that it is compared with."""
    header = ["", report.unit, "ms", "ms of the peer", report.ratio_title, "arithmetic alone", "of ceiling"]
    rows = []
    for group in report.groups:
        own, *others = group.rows
        peer = next((row for row in others if row.ratio is not None), None)
        if group.arithmetic_ratio is None or peer is None or peer.ratio is None:
            continue  # only networks are told in one line, where both have a time
        arithmetic = f"{group.arithmetic_ratio:.2f}"
        share = "" if own.utilization is None else f"{100 * own.utilization:.0f} %"
        times = [_number(1e3 * row.time_s.median) for row in (own, peer) if row.time_s is not None]
        rows.append([group.title, _rate(own), *times, ratio_text(peer.ratio), arithmetic, share])
    return header, rows


def _without_empty_columns(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    kept = [at for at in range(len(header)) if any(cells[at] for cells in rows)]
    return [header[at] for at in kept], [[cells[at] for at in kept] for cells in rows]


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
    files = {".md": markdown(report).encode(), ".json": (json.dumps(report.to_dict(), indent=1) + "\n").encode()}
    if chart and any(row.ratio is not None for group in report.groups for row in group.rows):
        files[".png"] = draw_ratios(report)
    try:
        written = []
        if ".png" not in files:
            remove(folder / f"{report.what}.png")
        for suffix, content in files.items():
            path = folder / f"{report.what}{suffix}"
            write_file(path, content)
            written.append(path)
    except OSError as error:
        raise UserError(f"--out {folder} cannot be written: {error.strerror}") from error
    return written


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


def markdown(report: Report) -> str:
    """The whole report as Markdown: what was measured, on what, how to do it again."""
    found = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version is not None)
    memory = f"{found['memory_bytes'] / GIB:.0f} GiB memory" if found["memory_bytes"] else "memory unknown"
    lines = [
        f"# illama bench {report.what}",
        "",
        f"`{shlex.join(['illama', *found['command'][1:]])}`",
        "",
        f"* {found['processor']}, {found['cpu_cores']} cores, {found['torch_threads']} threads, "
        f"{found['cpu_capability']}, {memory}; device {found['device']}",
        f"* {versions}; {found['platform']}; revision {found['git_revision']}",
        *(f"* {line}" for line in (*_missing_lines(report), *_ceiling_lines(report), *report.lines)),
        "* Rounds in rotated order; times are medians over rounds with quartiles in brackets, and a ratio is the "
        "median of the ratios within the rounds. A round in which other processes kept more than "
        f"{OTHERS_LIMIT:.2f} cores busy is made again.",
        "",
    ]
    summary = _summary(report)
    if len(summary[1]) > 1:
        lines += ["## All together", "", *_markdown_table(*summary), ""]
    for group in report.groups:
        columns = _without_empty_columns(_header(report), [_cells(row) for row in group.rows])
        lines += [f"## {group.title}", "", *_markdown_table(*columns), ""]
        lines += [*(f"* {line}" for line in _group_lines(group)), ""]
        if group.profile:
            lines += [*_markdown_table(*_profile_rows(group)), ""]
    return "\n".join(lines).rstrip() + "\n"


def _header(report: Report) -> list[str]:
    return [
        "",
        report.unit,
        "ms (quartiles)",
        report.ratio_title,
        "GFLOP/s",
        "of ceiling",
        "floor arithmetic, ms",
        "floor bandwidth, ms",
        "peak memory",
    ]


def _cells(row: CaseRow) -> list[str]:
    return [
        f"{row.name} (timed eagerly)" if row.eager else row.name,
        _rate(row),
        _times(row),
        "" if row.ratio is None else ratio_text(row.ratio),
        "" if row.flops_per_s is None else _number(row.flops_per_s / 1e9),
        "" if row.utilization is None else f"{100 * row.utilization:.0f} %",
        "" if row.arithmetic_floor_s is None else _number(1e3 * row.arithmetic_floor_s),
        "" if row.bandwidth_floor_s is None else _number(1e3 * row.bandwidth_floor_s),
        _memory(row),
    ]


def _memory(row: CaseRow) -> str:
    if row.peak_bytes is None:
        return "not measured" if row.flops_per_s is not None else ""  # loading images has no floors and no such column
    return f"{_number(row.peak_bytes / MIB)} MiB"


def ratio_text(ratio: Spread) -> str:
    """A ratio with its quartiles: 1.14 (1.12-1.17)."""
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _rate(row: CaseRow) -> str:
    return "" if row.items_per_s is None else _number(row.items_per_s)


def _times(row: CaseRow) -> str:
    time_s = row.time_s
    if time_s is None:
        return "" if row.failure is None else row.failure.partition(" (")[0]  # all of it stands below the table
    return f"{_number(1e3 * time_s.median)} ({_number(1e3 * time_s.low)}-{_number(1e3 * time_s.high)})"


def _number(value: float) -> str:
    """Three digits that mean something, without exponents."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _group_lines(group: Group) -> list[str]:
    rounds = group.rounds
    made = rounds.made
    text = f"{made} rounds"
    if rounds.others:
        others = Spread.of(rounds.others)
        text += f"; other processes kept {others.median:.2f} cores busy (median, highest {max(rounds.others):.2f})"
    if rounds.repeated:
        text += f"; {rounds.repeated} rounds made again because others were busy"
    lines = [text] if made else []
    lines += [f"{row.name}: {row.failure}" for row in group.rows if row.failure is not None]
    lines += [f"{name}: timed eagerly, with what the host does: {why}" for name, why in rounds.eager.items()]
    if rounds.disturbed:
        lines.append(
            f"DISTURBED: in {rounds.disturbed} of {made} rounds others kept more than {OTHERS_LIMIT:.2f} cores busy; "
            "measure again on a quiet machine"
        )
    if group.arithmetic_ratio is not None:
        lines.append(f"arithmetic alone would give {group.arithmetic_ratio:.3f}")
    return [*lines, *group.notes]


def _missing_lines(report: Report) -> list[str]:
    return [f"NOT FINISHED: still to be measured were {'; '.join(report.missing)}."] if report.missing else []


def _ceiling_lines(report: Report) -> list[str]:
    if report.ceilings is None:
        return []
    products = ", ".join(
        f"{precision} {speed / 1e9:,.0f} GFLOP/s ({report.ceilings.how[precision]})"
        for precision, speed in report.ceilings.flops_per_s.items()
    )
    memory = ", ".join(f"{size >> 20} MiB {speed / 1e9:,.0f}" for size, speed in report.ceilings.bytes_per_s.items())
    lines = [f"Measured ceilings: matrix products {products}; memory in GB/s by buffer: {memory}."]
    others = report.ceilings.others
    if others is not None and others > OTHERS_LIMIT:
        lines.append(
            f"DISTURBED: while the ceilings were measured others kept {others:.2f} cores busy; they are too low, and "
            "the shares of the ceiling too high."
        )
    return lines


def _profile_rows(group: Group) -> tuple[list[str], list[list[str]]]:
    """Kinds of work as rows, cases as columns: ms per call and share."""
    kinds = sorted({kind for found in group.profile.values() for kind in found}, key=_profile_order(group))
    rows = []
    for kind in kinds:
        cells = [kind]
        for found in group.profile.values():
            seconds, total = found.get(kind, 0.0), sum(found.values()) or 1.0
            cells.append(f"{_number(1e3 * seconds)} ({100 * seconds / total:.0f} %)")
        rows.append(cells)
    rows.append(["all", *(_number(1e3 * sum(found.values())) for found in group.profile.values())])
    return ["ms", *group.profile], rows


def _profile_order(group: Group) -> Any:
    return lambda kind: -max(found.get(kind, 0.0) for found in group.profile.values())


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|---|" + "---:|" * (len(header) - 1),
        *("| " + " | ".join(cell or " " for cell in cells) + " |" for cells in rows),
    ]


# The colours of the other figures of this project (Okabe and Ito's, which colour-blind readers can tell apart).
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#777777")


def draw_ratios(report: Report) -> bytes:
    """Horizontal bars, one for each row that has a ratio, with quartiles; equality is a line. A PNG file's bytes."""
    bars = [(group, row) for group in report.groups for row in group.rows if row.ratio is not None]
    names = list(dict.fromkeys(row.name for _, row in bars))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for place, (group, row) in enumerate(bars):
        assert row.ratio is not None
        error = [[row.ratio.median - row.ratio.low], [row.ratio.high - row.ratio.median]]
        color = COLORS[names.index(row.name) % len(COLORS)]
        label = row.name if row.name not in axes.get_legend_handles_labels()[1] else None
        axes.barh(place, row.ratio.median, 0.7, xerr=error, color=color, label=label, error_kw={"capsize": 3})
        axes.annotate(
            f"{row.ratio.median:.2f}", (row.ratio.high, place), (5, 0), textcoords="offset points", va="center"
        )
        first_peer = group.rows[1] is row
        if first_peer and group.arithmetic_ratio is not None:
            marked = "what arithmetic alone would give"
            known = marked in axes.get_legend_handles_labels()[1]
            axes.plot(group.arithmetic_ratio, place, "k|", markersize=18, label=None if known else marked)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_yticks(range(len(bars)), [group.title for group, _ in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(row.ratio.high for _, row in bars if row.ratio is not None))
    axes.set_xlabel(f"{report.ratio_title} (median and quartiles of the rounds)")
    axes.set_title(f"illama bench {report.what}, {report.environment['processor']}, {report.environment['device']}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
