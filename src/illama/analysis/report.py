"""What every analysis returns, what their pictures share, and all of it as one report: a page, Markdown, CSV, JSON."""

from __future__ import annotations

import json
import logging
import shlex
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from illama.analysis.registry import ANALYSES
from illama.console import text
from illama.console.text import as_json, read_json
from illama.data.imagenet import readable
from illama.errors import UserError
from illama.evaluation.cache import make_workspace
from illama.evaluation.subject import Subject
from illama.models.cost import multiply_adds, parameters
from illama.report import Block, Bullets, Code, Document, Section, Table, Text, write_document
from illama.system.environment import environment
from illama.system.files import utf8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


CACHE = "cache"  # sub-folder with what a second call need not compute again
BRACKETS = "Brackets hold 95 % intervals over the images, or what a number rests on."
_log = logging.getLogger("illama")
LONGEST_NAME = 28  # characters beside an axis; what follows is cut off
GRID = "#dddddd"


@dataclass(frozen=True)
class Measure:
    """One line of a report's summary.

    Attributes:
        name: What was measured: "expected calibration error, 15 bins".
        value: The number in words with its unit and, where there is one, its interval: "0.034 (0.029 to 0.041)".
        published: The paper's number for a published network of this kind; "" where there is none.
    """

    name: str
    value: str
    published: str = ""


@dataclass(frozen=True)
class AnalysisResult:
    """What one analysis returns.

    Attributes:
        name: The analysis: "calibration".
        summary: The few numbers that stand at the head of a report.
        section: Heading, figures and tables. Each figure's caption begins with one sentence that says how to read it.
        values: All numbers as plain values for JSON: no NaN, no tensors.
        tables: File name -> CSV text, for what one would draw again.
    """

    name: str
    summary: tuple[Measure, ...]
    section: Section
    values: dict[str, Any]
    tables: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> str:
        """`values` as JSON; a number that is not finite is a bug of the analysis."""
        return as_json(self.values, allow_nan=False)


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
        reason = "not wanted (--without)" if name in left_out else analysis.why_not(subject, options[name])
        if reason is None:
            _log.info("%s (%d of %d)", name, number, len(ANALYSES))
            try:
                findings.append(analysis.run(subject, options[name], workspace))
            except UserError as error:
                reason = str(error)
        if reason is not None:
            _log.info("%s left out: %s", name, reason)
            reasons[name] = reason
    return AnalysisReport(tuple(findings), reasons, subject)


def write_look(report: AnalysisReport, folder: Path, title: str | None = None) -> list[Path]:
    """Write report.html, report.md, report.json, a CSV file for each table and an SVG file for each picture.

    Returns:
        The files, the page first.

    Raises:
        UserError: The folder cannot be written to.
    """
    plain: dict[str, Any] = {
        "command": ["illama", *sys.argv[1:]],
        "subject": None if report.subject is None else _described(report.subject),
        "environment": _environment(report.subject),
        "findings": {result.name: result.values for result in report.findings},
        "left_out": dict(report.left_out),
    }
    attached = {name: utf8(text) for result in report.findings for name, text in result.tables.items()}
    document = _document(report, title)
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
    measures = [measure for result in findings for measure in result.summary]
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


def _document(report: AnalysisReport, title: str | None) -> Document:
    summary: list[Block] = [summary_table(report.findings)]
    if report.left_out:
        points = tuple(f"**{name}**: {reason}" for name, reason in report.left_out.items())
        summary += [Text("Left out:"), Bullets(points)]
    sections = [Section("Summary", tuple(summary)), *(result.section for result in report.findings)]
    sections.append(Section("How this was made", tuple(_making(report.subject))))
    first = "" if report.subject is None else f"{about(report.subject)}. "
    lead = f"{first}All numbers stand in report.json and the CSV files beside this page."
    if title is None:  # whose inside this is; what was found where no network is known
        titles = ", ".join(result.section.title for result in report.findings)
        title = titles if report.subject is None else f"Inside {report.subject.name}"
    return Document(title, lead, tuple(sections))


def _making(subject: Subject | None) -> list[Block]:
    made = _environment(subject)
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items() if version)
    machine = f"{made['processor']}, {made['cpu_cores']} cores, {made['device']}; {versions}; {made['platform']}."
    blocks: list[Block] = [Code(shlex.join(["illama", *sys.argv[1:]])), Text(machine)]
    if subject is None:
        return blocks
    described, config = _described(subject), subject.model.config
    rows = (
        ("parameters", f"{described['parameters']:,}"),
        ("multiply-adds of one image", f"{described['multiply_adds'] / 1e9:.3f} G"),
        ("image", " x ".join(map(str, config.height_width)) + f" px, patches of {config.patch_size} px"),
        ("width, blocks, heads", f"{config.embed_dim}, {config.depth}, {config.num_heads}"),
        ("feed-forward, norm, position", f"{config.ffn}, {config.norm}, {config.position}"),
        ("mask, mask mode, class token", f"{config.mask}, {config.mask_mode}, {config.cls_position}"),
        ("softness", f"{described['softness']:g}"),
    )
    return [*blocks, Table(("network", ""), rows)]


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


def canvas(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty picture of so many inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def open_frame(axes: Axes) -> Axes:
    """The same without the lines above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def layers_along(axes: Axes, layers: int) -> range:
    """Layers 1 to `layers` along the lower axis, with about twelve numbers; returns them."""
    numbers = range(1, layers + 1)
    axes.set_xticks(list(numbers)[:: max(1, layers // 12)])
    axes.set(xlabel="layer", xlim=(0.5, layers + 0.5))
    return numbers


def name_text(name: str) -> str:
    """A name of a class on one line; a WordNet id of ImageNet with its word."""
    return text.shown(" ".join(readable(name).split()))


def short(name: str) -> str:
    """The same, where there is room for `LONGEST_NAME` characters."""
    name = name_text(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
