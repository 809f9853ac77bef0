"""Findings as one report: a page, Markdown, pictures, CSV and JSON."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from illama.analysis.registry import ANALYSES
from illama.analysis.result import AnalysisResult
from illama.console.json_text import read_json
from illama.errors import UserError
from illama.evaluation.cache import make_workspace
from illama.evaluation.subject import Subject
from illama.models.cost import multiply_adds, parameters
from illama.report import Block, Bullets, Code, Document, Section, Table, Text, write_document
from illama.system.environment import environment
from illama.system.files import utf8

CACHE = "cache"  # sub-folder with what a second call need not compute again
BRACKETS = "Brackets hold 95 % intervals over the images, or what a number rests on."
_log = logging.getLogger("illama")


@dataclass(frozen=True)
class AnalysisReport:
    """What a report tells.

    Attributes:
        findings: One per analysis.
        left_out: Analysis -> why it was not made.
        subject: Which network, on which images; None for findings from saved logits alone.
    """

    findings: tuple[AnalysisResult, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    subject: Subject | None = None


def look(subject: Subject, options: Mapping[str, Any], folder: Path, left_out: Collection[str] = ()) -> AnalysisReport:
    """Make every analysis that applies.

    Args:
        subject: Which network, on which images.
        options: Analysis -> its options.
        folder: Where the report will stand; intermediate results are kept in it, and used by a second call.
        left_out: Analyses that are not wanted.

    Returns:
        What was found. An analysis that cannot be made is named with its reason and stops no other.
    """
    workspace = make_workspace(folder / CACHE)
    findings: list[AnalysisResult] = []
    reasons: dict[str, str] = {}
    for number, (name, analysis) in enumerate(ANALYSES.items(), start=1):
        reason = "not wanted (--without)" if name in left_out else why_not(name, subject, options[name])
        if reason is None:
            _log.info("%s (%d of %d)", name, number, len(ANALYSES))
            try:
                findings.append(analysis.load(name)(subject, options[name], workspace))
            except UserError as error:
                reason = str(error)
        if reason is not None:
            _log.info("%s left out: %s", name, reason)
            reasons[name] = reason
    return AnalysisReport(tuple(findings), reasons, subject)


def why_not(name: str, subject: Subject, options: Any) -> str | None:
    """Why an analysis cannot be made for this network and these images; None if it can."""
    analysis = ANALYSES[name]
    if analysis.numbering == "model" and subject.numbering != "model":
        return "the images' classes are not the network's"
    reason: str | None = analysis.load("why_not")(subject, options)
    return reason


def write_look(found: AnalysisReport, folder: Path, title: str | None = None) -> list[Path]:
    """Write report.html, report.md, report.json, a CSV file for each table and an SVG file for each picture.

    Returns:
        The files, the page first.

    Raises:
        UserError: The folder cannot be written to.
    """
    plain: dict[str, Any] = {
        "command": ["illama", *sys.argv[1:]],
        "subject": None if found.subject is None else _described(found.subject),
        "environment": _environment(found.subject),
        "findings": {finding.name: finding.values for finding in found.findings},
        "left_out": dict(found.left_out),
    }
    attached = {name: utf8(text) for finding in found.findings for name, text in finding.tables.items()}
    document = _document(found, title)
    own = {*attached, *(f"{figure.name}.svg" for figure in document.figures())}
    plain["files"] = sorted(own)
    former = _former_files(folder)
    attached["report.json"] = utf8(json.dumps(plain, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    written = write_document(document, folder, attached)
    for name in former - own:  # of another report in this folder: beside the new page they would belong to nothing
        (folder / name).unlink(missing_ok=True)
    return written


def summary_table(findings: tuple[AnalysisResult, ...]) -> Table:
    """The few numbers that stand at the head; published ones have a column where there are any."""
    measures = [measure for finding in findings for measure in finding.summary]
    if any(measure.published for measure in measures):
        rows = tuple((measure.name, measure.value, measure.published) for measure in measures)
        return Table(("measure", "found", "published"), rows, BRACKETS)
    return Table(("measure", "found"), tuple((measure.name, measure.value) for measure in measures), BRACKETS)


def _former_files(folder: Path) -> set[str]:
    """Pictures and tables of the report that stands in the folder."""
    try:
        names = read_json(folder / "report.json")["files"]
        return {name for name in names if Path(name).name == name and Path(name).suffix in (".svg", ".csv")}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def about(subject: Subject) -> str:
    """Which weights, on which images."""
    return subject.weights if not subject.has_images else f"{subject.weights}, on {subject.source.description}"


def _document(found: AnalysisReport, title: str | None) -> Document:
    sections = [Section("Summary", (summary_table(found.findings), *_left_out(found)))]
    sections += [finding.section for finding in found.findings]
    sections.append(Section("How this was made", tuple(_making(found.subject))))
    first = "" if found.subject is None else f"{about(found.subject)}. "
    lead = f"{first}All numbers stand in report.json and the CSV files beside this page."
    return Document(title or _title(found), lead, tuple(sections))


def _left_out(found: AnalysisReport) -> list[Block]:
    if not found.left_out:
        return []
    points = tuple(f"**{name}**: {reason}" for name, reason in found.left_out.items())
    return [Text("Left out:"), Bullets(points)]


def _making(subject: Subject | None) -> list[Block]:
    made = _environment(subject)
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    machine = f"{made['processor']}, {made['cpu_cores']} cores, {made['device']}; {versions}; {made['platform']}."
    blocks: list[Block] = [Code(shlex.join(["illama", *sys.argv[1:]])), Text(machine)]
    if subject is not None:
        blocks.append(_network(subject))
    return blocks


def _network(subject: Subject) -> Table:
    described, config = _described(subject), subject.model.config
    return Table(
        ("network", ""),
        (
            ("parameters", f"{described['parameters']:,}"),
            ("multiply-adds of one image", f"{described['multiply_adds'] / 1e9:.3f} G"),
            ("image", " x ".join(map(str, config.height_width)) + f" px, patches of {config.patch_size} px"),
            ("width, blocks, heads", f"{config.embed_dim}, {config.depth}, {config.num_heads}"),
            ("feed-forward, norm, position", f"{config.ffn}, {config.norm}, {config.position}"),
            ("mask, mask mode, class token", f"{config.mask}, {config.mask_mode}, {config.cls_position}"),
            ("softness", f"{described['softness']:g}"),
        ),
    )


def _described(subject: Subject) -> dict[str, Any]:
    config = subject.model.config
    return {
        "weights": subject.weights,
        "data": subject.source.description if subject.has_images else None,
        "softness": float(subject.model.softness),
        "parameters": parameters(config),
        "multiply_adds": multiply_adds(config),
        "config": config.to_dict(),
        "eval_transform": subject.transform.to_dict(),
    }


def _environment(subject: Subject | None) -> dict[str, Any]:
    """Versions and hardware, without what differs from folder to folder."""
    device = torch.device("cpu") if subject is None else subject.device
    return {key: value for key, value in environment(device).items() if key not in ("command", "working_folder")}


def _title(found: AnalysisReport) -> str:
    """Whose inside this is; what was found where no network is known."""
    if found.subject is None:
        return ", ".join(finding.section.title for finding in found.findings)
    return f"Inside {found.subject.name}"
