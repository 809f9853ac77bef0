"""The parts of a network on the CPU, each made in several ways: where the numbers of docs/kernels.md come from.

    python benchmarks/cpu_parts.py --out benchmarks/results/cpu_parts              # all parts, some five minutes
    python benchmarks/cpu_parts.py --part rotation --out benchmarks/results/cpu_parts

Ways are timed in interleaved rounds, as `illama bench` does; times are medians with quartiles, ratios are formed within
the rounds. --out keeps what other parts found there before.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from processes import Worker
from ways import PARTS

from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import OtherLoad
from illama.bench.report import bench_environment
from illama.device.timers import WallTimer
from illama.system.processes import keep_freed_memory

CPU = torch.device("cpu")


def measured(part: str, seconds: float) -> dict[str, Any]:
    """All groups of a part, each for `seconds`."""
    found = []
    for group in PARTS[part]():
        load = None if group.elsewhere else OtherLoad.here()
        rounds = measure(group.cases, Effort(seconds), timer=WallTimer(), load=load)
        found.append({"title": group.title, "ways": [_way(case, group.cases[0], rounds) for case in group.cases]})
        found[-1] |= {"rounds": rounds.to_dict()}
        Worker.stop_all()
        print("\n".join(_table(found[-1])), flush=True)
    environment = {key: value for key, value in bench_environment(CPU).items() if key != "command"}
    command = f"python benchmarks/cpu_parts.py --part {part}"
    return {
        "what": (PARTS[part].__doc__ or "").strip(),
        "command": command,
        "environment": environment,
        "groups": found,
    }


def _way(case: Case, first: Case, rounds: Rounds) -> dict[str, Any]:
    time_s = rounds.time(case.name)
    return {
        "name": case.name,
        "seconds": asdict(time_s),
        "flops_per_s": None if case.flops is None else case.flops / time_s.median,
        "speedup": None if case is first else asdict(rounds.speedup(case.name, over=first.name)),
    }


def _table(group: dict[str, Any]) -> list[str]:
    """One group as Markdown."""
    microseconds = group["ways"][0]["seconds"]["median"] < 1e-4
    unit, scale = ("microseconds", 1e6) if microseconds else ("ms", 1e3)
    lines = [
        "",
        f"| {group['title']} | {unit} (quartiles) | x times as fast as the first | GFLOP/s |",
        "|---|---:|---:|---:|",
    ]
    for way in group["ways"]:
        ratio = "" if way["speedup"] is None else _quartiles(way["speedup"], 1.0, ".2f")
        speed = "" if way["flops_per_s"] is None else f"{way['flops_per_s'] / 1e9:.0f}"
        lines.append(f"| {way['name']} | {_quartiles(way['seconds'], scale, '.3g')} | {ratio} | {speed} |")
    disturbed = group["rounds"]["rounds_disturbed"]
    return [*lines, "", f"DISTURBED in {disturbed} rounds"] if disturbed else lines


def _quartiles(found: dict[str, float], scale: float, form: str) -> str:
    median, low, high = (scale * found[key] for key in ("median", "quartile_low", "quartile_high"))
    return f"{median:{form}} ({low:{form}}-{high:{form}})"


def markdown(parts: dict[str, Any]) -> str:
    """All parts that have been measured."""
    lines = [
        "# Parts of a network on the CPU",
        "",
        "Written by `benchmarks/cpu_parts.py`; single times in cpu_parts.json.",
    ]
    for name in sorted(parts, key=list(PARTS).index):
        part, found = parts[name], parts[name]["environment"]
        lines += ["", f"## {name}", "", part["what"], "", f"`{part['command']}`", ""]
        lines.append(
            f"{found['processor']}, {found['cpu_cores']} cores, {found['torch_threads']} threads, "
            f"{found['cpu_capability']}; torch {found['versions']['torch']}, revision {found['git_revision']}"
        )
        for group in part["groups"]:
            lines += _table(group)
    return "\n".join(lines) + "\n"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    options.add_argument("--seconds", type=float, default=4.0, help="time for each group of ways")
    options.add_argument("--out", type=Path, help="folder for cpu_parts.md and cpu_parts.json")
    given = options.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    for part in given.part:
        print(f"\n{part}: {PARTS[part].__doc__}", flush=True)
        result = measured(part, given.seconds)
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            path = given.out / "cpu_parts.json"
            parts = json.loads(path.read_text()) if path.is_file() else {}
            parts[part] = result
            path.write_text(json.dumps(parts, indent=1) + "\n")
            (given.out / "cpu_parts.md").write_text(markdown(parts))


if __name__ == "__main__":
    main()
