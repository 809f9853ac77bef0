"""Accuracy on other images of ImageNet's classes, one row per set, and the error under corruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from illama.analysis.imagenet_answers import ImagenetAnswers, answers, not_imagenet
from illama.analysis.registry import RobustnessOptions
from illama.analysis.report import GRID, AnalysisResult, Measure, canvas, open_frame
from illama.analysis.robustness.measures import (
    CORRUPTIONS,
    COUNTED,
    GROUPS,
    SETS,
    SEVERITIES,
    Errors,
    ImageSet,
    as_imagenet,
    corruption_error,
    find_corrupted,
    mean_corruption_error,
    open_set,
    read_real,
    score_real,
    scores_among,
    validation_numbers,
)
from illama.console.progress import WorkProgress
from illama.data.eval_transform import EvalTransform
from illama.data.imagenet import NUM_CLASSES, wnids
from illama.data.source import Source
from illama.errors import UserError
from illama.evaluation.cache import Journal
from illama.evaluation.origin import data_id, network_id
from illama.evaluation.statistics import Interval, wilson
from illama.evaluation.subject import Subject
from illama.report import Block, Bullets, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREEN, ORANGE, PURPLE
from illama.system.files import at_home

MEMORY_FILE = "robustness.jsonl"
Labels = list[list[int]]
HEADER = ("set", "images", "classes", "unreadable", "top-1 (%)", "95 % interval", "top-5 (%)")
CORRUPTED_HEADER = ("corruption", *(f"severity {severity}" for severity in SEVERITIES), "mean", "of AlexNet's")
STYLES = ((BLUE, "o", "-"), (ORANGE, "s", "--"), (GREEN, "D", "-."), (PURPLE, "^", ":"))
ALL_COUNTED = len(COUNTED) * len(SEVERITIES)


@dataclass(frozen=True)
class SetRow:
    """One set.

    Attributes:
        title: Its name.
        top1, top5: Accuracy in percent; top-5 is None where it is not defined.
        hits: Images whose prediction is correct.
        images: Images classified.
        full_images: Images of the whole set; None where it has no fixed number.
        classes, full_classes: Classes that have images here, and in the whole set.
        skipped: Images that cannot be read.
        data: What was read, for people.
        note: What it is and where it was read, for people.
    """

    title: str
    top1: float
    top5: float | None
    hits: int
    images: int
    full_images: int | None
    classes: int
    full_classes: int
    skipped: int
    data: str
    note: str

    @property
    def interval(self) -> Interval:
        """95 % interval of top-1, percent."""
        return wilson(self.hits, self.images).in_percent()


@dataclass(frozen=True)
class Corrupted:
    """ImageNet-C.

    Attributes:
        errors: Corruption -> severity -> top-1 error, 0 to 1.
        images, skipped: Over all folders.
    """

    errors: Errors
    images: int
    skipped: int

    @property
    def folders(self) -> int:
        """Folders, one for each corruption and severity, of the 75 that count."""
        return sum(len(self.errors.get(name, {})) for name in COUNTED)

    @property
    def mean_error(self) -> float | None:
        """Mean error over those, 0 to 1; None without any."""
        values = [error for name in COUNTED for error in self.errors.get(name, {}).values()]
        return sum(values) / len(values) if values else None


def why_not(subject: Subject, options: RobustnessOptions) -> str | None:
    """Why this cannot be done for this network and these images, in one line; None if it can."""
    given = [name for name, path in asdict(options).items() if path is not None]
    if not given:
        return (
            "no robustness set is given; add folders: --imagenet-v2 FOLDER (in a report: robustness.imagenet_v2=FOLDER)"
        )
    if given == ["real"] and not (subject.has_images and _is_imagenet(subject.source)):
        return "ImageNet-ReaL has labels for ImageNet's validation images; add --imagenet FOLDER"
    return not_imagenet(subject)


def robustness(subject: Subject, options: RobustnessOptions, workspace: Path | None = None) -> AnalysisResult:
    """Accuracy of a network with ImageNet-1K's classes on each set that is given.

    Its own images are the reference where their classes are ImageNet's. The workspace remembers the result of each
    pass, so that an interrupted call goes on where it was.

    Raises:
        UserError: A folder or the network does not fit.
    """
    problem = why_not(subject, options)
    if problem is not None:
        raise UserError(f"robustness cannot be measured: {problem}")
    labels = None if options.real is None else read_real(at_home(options.real))
    channels = subject.meta.config.in_chans
    opened = {
        name: open_set(which, at_home(path), channels)
        for name, which in SETS.items()
        if (path := getattr(options, name)) is not None
    }
    corrupted = {} if options.imagenet_c is None else find_corrupted(at_home(options.imagenet_c))
    memory = _Memory(subject, workspace)
    rows = _reference(subject, opened.pop("imagenet", None), labels, memory)
    for name, source in opened.items():
        seen = partial(_seen, SETS[name], subject, source)
        rows += memory.recall([name], source, seen)
    return robustness_result(rows, _corrupted(subject, corrupted, memory) if corrupted else None)


def _is_imagenet(source: Source) -> bool:
    return bool(source.classes) and set(source.classes) <= set(wnids())


class _Memory:
    """Results of passes in a file, found again by all that they depend on."""

    def __init__(self, subject: Subject, workspace: Path | None) -> None:
        self._journal = None if workspace is None else Journal(workspace / MEMORY_FILE, {"analysis": "robustness"})
        self._network = "" if workspace is None else network_id(subject.model, subject.transform)

    def recall(self, what: list[Any], source: Source, compute: Callable[[], list[SetRow]]) -> list[SetRow]:
        """`compute()`, or what it returned for the same network, images and `what` before."""
        if self._journal is None:
            return compute()
        columns = [column.name for column in fields(SetRow)]  # what is remembered of a set
        parts = [self._network, data_id(source), source.description, what, columns]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        try:
            for entry in self._journal.entries:
                if entry["key"] == key:
                    return [SetRow(**row) for row in entry["rows"]]
        except (TypeError, KeyError):
            raise self._journal.damaged() from None
        rows = compute()
        self._journal.add({"key": key, "rows": [asdict(row) for row in rows]})
        return rows


def _reference(subject: Subject, opened: Source | None, labels: Labels | None, memory: _Memory) -> list[SetRow]:
    """ImageNet itself and, from the same pass, by ReaL's labels; nothing where there are no such images."""
    which = SETS["imagenet"]
    if opened is None:
        if not (subject.has_images and _is_imagenet(subject.source)):
            if labels is not None:
                raise UserError("ImageNet-ReaL has labels for ImageNet's validation images; add --imagenet FOLDER")
            return []
        opened = as_imagenet(subject.source, subject.source.description)
        which = ImageSet("given images", None, "those that the report as a whole is about")
    source = opened
    numbers = None if labels is None else validation_numbers(source)

    def compute() -> list[SetRow]:
        logits = answers(subject, source)
        rows = [_row(which, source, logits)]
        if labels is not None and numbers is not None:
            rows.append(_real_row(source, logits, numbers, labels))
        return rows

    judged_by = None if labels is None else hashlib.sha256(json.dumps(labels).encode()).hexdigest()
    return memory.recall(["imagenet", judged_by], source, compute)


def _seen(which: ImageSet, subject: Subject, source: Source, transform: EvalTransform | None = None) -> list[SetRow]:
    """One pass over a set."""
    return [_row(which, source, answers(subject, source, transform))]


def _row(which: ImageSet, source: Source, answered: ImagenetAnswers) -> SetRow:
    scores = scores_among(answered.logits, answered.labels, which.classes)
    return SetRow(
        title=which.title,
        top1=scores.top(1),
        top5=scores.top(5),
        hits=int((scores.ranks == 0).sum()),
        images=len(answered.labels),
        full_images=which.images,
        classes=len(set(answered.labels.tolist())),
        full_classes=len(which.classes),
        skipped=answered.skipped,
        data=source.description,
        note=f"{which.about}; {source.description}.",
    )


def _real_row(source: Source, answered: ImagenetAnswers, numbers: Tensor, labels: Labels) -> SetRow:
    real = score_real(answered.logits, numbers[answered.positions], labels)
    return SetRow(
        title="ImageNet-ReaL",
        top1=100 * real.hits / real.images,
        top5=None,
        hits=real.hits,
        images=real.images,
        full_images=sum(map(bool, labels)),
        classes=len(set(answered.labels.tolist())),
        full_classes=NUM_CLASSES,
        skipped=answered.skipped,
        data=source.description,
        note="the same images by corrected labels, of which one may have several (Beyer et al., 2020); "
        f"images without any are left out ({real.unlabelled:,}).",
    )


def _corrupted(subject: Subject, folders: dict[tuple[str, int], Path], memory: _Memory) -> Corrupted:
    """ImageNet-C. Its images are 224 px squares, cropped from ImageNet's, and its authors show them as they are."""
    transform = replace(subject.transform, mode="none")
    errors: dict[str, dict[int, float]] = {}
    images = skipped = 0
    with WorkProgress("ImageNet-C", len(folders), "sets") as progress:
        for (name, severity), folder in folders.items():
            source = open_set(SETS["imagenet"], folder, subject.meta.config.in_chans)
            seen = partial(_seen, SETS["imagenet"], subject, source, transform)
            (row,) = memory.recall(["imagenet_c", name, severity], source, seen)
            errors.setdefault(name, {})[severity] = 1 - row.hits / row.images
            images, skipped = images + row.images, skipped + row.skipped
            progress.advance(1)
    return Corrupted(errors, images, skipped)


def robustness_result(rows: Sequence[SetRow], corrupted: Corrupted | None) -> AnalysisResult:
    """Everything about the sets that were given."""
    tables, of_corruptions = {}, None
    blocks: list[Block] = []
    if rows:
        blocks += [_bars(rows), Table(HEADER, tuple(map(_cells, rows)), "Accuracy on each set.")]
        blocks.append(Bullets(tuple(f"**{row.title}**: {row.note}" for row in rows)))
        plain = [asdict(row) | row.interval._asdict() for row in rows]
        columns = [name for name in plain[0] if name not in ("data", "note")]
        tables["robustness.csv"] = csv_text(columns, [[row[name] for name in columns] for row in plain])
    if corrupted is not None:
        blocks += [Text(_about_corrupted(corrupted)), _lines(corrupted.errors), _corrupted_table(corrupted.errors)]
        long = [
            (name, CORRUPTIONS[name].group, severity, error)
            for name, by_severity in corrupted.errors.items()
            for severity, error in by_severity.items()
        ]
        of_corruptions = {
            "errors": {name: {str(s): error for s, error in own.items()} for name, own in corrupted.errors.items()},
            "corruption_errors": {name: corruption_error(name, own) for name, own in corrupted.errors.items()},
            "mean_corruption_error": mean_corruption_error(corrupted.errors),
            "mean_error": corrupted.mean_error,
            "sets": corrupted.folders,
            "images": corrupted.images,
            "skipped": corrupted.skipped,
        }
        tables["imagenet_c.csv"] = csv_text(("corruption", "group", "severity", "top1_error"), long)
    return AnalysisResult(
        "robustness",
        _summary(rows, corrupted),
        Section("Other images of the same classes", tuple(blocks)),
        {
            "sets": [asdict(row) | {"interval": list(row.interval)} for row in rows],
            "imagenet_c": of_corruptions,
        },
        tables,
    )


def _summary(rows: Sequence[SetRow], corrupted: Corrupted | None) -> tuple[Measure, ...]:
    measures = []
    for row in rows:
        low, high = row.interval
        counted = f"{row.images:,}" + ("" if row.full_images in (None, row.images) else f" of {row.full_images:,}")
        measures.append(Measure(f"{row.title}, top-1", f"{row.top1:.2f} % ({low:.2f} to {high:.2f}; {counted} images)"))
    if corrupted is not None:
        error, of_alexnet = corrupted.mean_error, mean_corruption_error(corrupted.errors)
        if error is not None:
            folders = f"{corrupted.folders} of {ALL_COUNTED} corrupted sets"
            measures.append(Measure("ImageNet-C, mean error", f"{100 * error:.2f} % ({folders})"))
        if of_alexnet is not None:
            measures.append(Measure("ImageNet-C, error relative to AlexNet's (mCE)", f"{100 * of_alexnet:.2f} %"))
    return tuple(measures)


def _cells(row: SetRow) -> tuple[str, ...]:
    low, high = row.interval
    return (
        row.title,
        f"{row.images:,}" + ("" if row.full_images is None else f" of {row.full_images:,}"),
        f"{row.classes:,} of {row.full_classes:,}",
        str(row.skipped),
        f"{row.top1:.2f}",
        f"{low:.2f} to {high:.2f}",
        "-" if row.top5 is None else f"{row.top5:.2f}",
    )


def _about_corrupted(corrupted: Corrupted) -> str:
    of_alexnet = mean_corruption_error(corrupted.errors)
    further = sum(len(own) for name, own in corrupted.errors.items() if name not in COUNTED)
    text = (
        f"ImageNet-C: {corrupted.folders} of its {ALL_COUNTED} sets (15 corruptions at 5 severities)"
        + (f" and {further} of further corruptions" if further else "")
        + f"; {corrupted.images:,} images, {corrupted.skipped} unreadable. Its images are cropped already, so they are "
        "not cropped again. "
    )
    if of_alexnet is None:
        return text + "Without all of the sets there is no mean corruption error (mCE)."
    return text + f"The mean corruption error relative to AlexNet's (mCE) is **{100 * of_alexnet:.2f} %**."


def _corrupted_table(errors: Errors) -> Table:
    rows = []
    for name, by_severity in errors.items():
        relative = corruption_error(name, by_severity)
        shown = [f"{100 * by_severity[s]:.1f}" if s in by_severity else "-" for s in SEVERITIES]
        mean = sum(by_severity.values()) / len(by_severity)
        rows.append((name, *shown, f"{100 * mean:.1f}", "-" if relative is None else f"{100 * relative:.1f} %"))
    extra = [name for name in errors if name not in COUNTED]
    beside = f" {', '.join(extra)}: further corruptions, which do not count." if extra else ""
    return Table(CORRUPTED_HEADER, tuple(rows), f"Top-1 error in percent.{beside}")


def _bars(rows: Sequence[SetRow]) -> Figure:
    figure = canvas(7.6, 1.1 + 0.45 * len(rows))
    axes = open_frame(figure.subplots())
    top1 = [row.top1 for row in rows]
    # Rounding can put a bound a hair on the wrong side of its value, which matplotlib would refuse.
    below = [max(0.0, row.top1 - row.interval[0]) for row in rows]
    above = [max(0.0, row.interval[1] - row.top1) for row in rows]
    axes.barh(range(len(rows)), top1, 0.66, xerr=[below, above], color=BLUE, error_kw={"capsize": 3, "linewidth": 1})
    for place, row in enumerate(rows):
        axes.annotate(f"{row.top1:.1f}", (row.interval[1], place), (6, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * max(row.interval[1] for row in rows))  # with room for the number behind a bar
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= min(100, axes.get_xlim()[1])])
    axes.set_xlabel("top-1 accuracy (%)")
    caption = "The longer a bar, the more images of that set are classified correctly; thin lines are 95 % intervals."
    if any(row.full_classes < NUM_CLASSES for row in rows):
        caption += " ImageNet-A and -R have 200 classes each, and only these can be predicted."
    return Figure("robustness", svg_bytes(figure), f"Top-1 accuracy on {len(rows)} sets of images", caption)


def _lines(errors: Errors) -> Figure:
    groups = [group for group in GROUPS if any(CORRUPTIONS[name].group == group for name in errors)]
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    figure = canvas(4.9 * columns, 2.7 * lines)
    panels = list(figure.subplots(lines, columns, squeeze=False, sharey=True).flat)
    for axes, group in zip(panels, groups, strict=False):
        own = [name for name in errors if CORRUPTIONS[name].group == group]
        for name, (colour, marker, dashes) in zip(own, STYLES, strict=False):
            shown = sorted(errors[name].items())
            percent = [100 * error for _, error in shown]
            label = name.replace("_", " ")
            axes.plot([s for s, _ in shown], percent, dashes, color=colour, marker=marker, markersize=5, label=label)
        axes.set_title("further ones, which do not count" if group == "extra" else group)
        axes.set_xticks(SEVERITIES)
        axes.set_xlim(0.8, 5.2)
        axes.set_ylim(0, 100)
        axes.set_xlabel("severity")
        axes.tick_params(labelleft=True)
        axes.set_ylabel("top-1 error (%)")
        axes.grid(color=GRID, linewidth=0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    caption = "The steeper a line rises, the more that corruption of ImageNet-C hurts as it grows more severe."
    return Figure("imagenet_c", svg_bytes(figure), "Error by corruption and severity", caption)
