"""Key figures of what the parts of gpu.py write, finished or killed."""

from __future__ import annotations

import contextlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

_SUMMARY = re.compile(r"^=*\s*(\d+ (?:passed|failed|skipped|error|deselected)[^=]*?) in [\d.]+s", re.MULTILINE)
_ONE = re.compile(
    r"^(?:\[gw\d+\] .*?(PASSED|FAILED|ERROR|SKIPPED) \S+::|\S+::.* (PASSED|FAILED|ERROR|SKIPPED)\b)", re.M
)


def of_tests(folder: Path) -> dict[str, str]:
    """pytest's last line; the tests that were over where it was killed."""
    text = (folder / "log.txt").read_text(errors="replace")
    whole = _SUMMARY.findall(text)
    if whole:
        return {"tests": whole[-1]}
    found = Counter((one or other).lower() for one, other in _ONE.findall(text))
    return {"tests until then": ", ".join(f"{count} {what}" for what, count in sorted(found.items())) or "none"}


def of_versions(folder: Path) -> dict[str, str]:
    found = json.loads((folder / "versions.json").read_text())
    return {"device": str(found["device"]), "torch": str(found["versions"]["torch"])}


def of_bench(folder: Path) -> dict[str, str]:
    """ms and ratio of each row of a report of `illama bench`."""
    return {
        f"{group['title']}: {case['name']}": _row(case)
        for file in folder.glob("*.json")
        for group in json.loads(file.read_text())["groups"]
        for case in group["cases"]
    }


def _row(case: dict[str, Any]) -> str:
    if case["seconds"] is None:
        return str(case["failure"])
    ratio, eagerly = case["ratio"], " (timed eagerly)" if case["timed_eagerly"] else ""
    text = f"{1e3 * case['seconds']['median']:.4g} ms{eagerly}"
    if ratio is not None:
        text += f", ratio {ratio['median']:.2f} ({ratio['quartile_low']:.2f}-{ratio['quartile_high']:.2f})"
    return text


def of_kernels(folder: Path) -> dict[str, str]:
    """The fastest of each kind of kernel at each shape."""
    best: dict[str, dict[str, Any]] = {}
    failed = 0
    for row in _lines(folder / "kernels.jsonl"):
        if "kernel" not in row:
            continue
        failed += "failed" in row
        if "failed" in row or row.get("alpha", 0.0) != 0.0:
            continue
        key = f"{tuple(row['shape'])} {row['kernel']}"
        if row["ms"] < best.get(key, {"ms": float("inf")})["ms"]:
            best[key] = row
    found = {key: f"{row['ms']:.4g} ms {row.get('tiles', '')}".rstrip() for key, row in best.items()}
    return found | ({"rows that failed": str(failed)} if failed else {})


def of_run(folder: Path) -> dict[str, str]:
    """Pace and accuracy of a training run."""
    records = _lines(folder / "run" / "metrics.jsonl")
    found = {}
    steps = [record for record in records if record["kind"] == "train"]
    if steps:
        best, last = max(step["images_per_s"] for step in steps), steps[-1]
        found["pace"] = f"{best:,.0f} images/s at best, {last['images_per_s']:,.0f} at last"
        found["epochs"] = f"{last['epoch']:.1f}"
    for record in records:
        if record["kind"] == "eval":
            found["top-1"] = f"{record['top1']:.2f} % after epoch {record['epoch']}"
    return found


def _lines(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines: the last one may have been cut."""
    found = []
    for line in file.read_text(errors="replace").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found
