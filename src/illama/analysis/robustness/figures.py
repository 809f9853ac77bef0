"""Tables, figures and numbers of the robustness sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from illama.analysis.result import AnalysisResult, Measure
from illama.analysis.robustness.measures import (
    CORRUPTIONS,
    COUNTED,
    GROUPS,
    SEVERITIES,
    Errors,
    corruption_error,
    mean_corruption_error,
)
from illama.data.imagenet import NUM_CLASSES
from illama.evaluation.statistics import wilson
from illama.report import Block, Bullets, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREEN, ORANGE, PURPLE

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
    def interval(self) -> tuple[float, float]:
        """95 % interval of top-1, percent."""
        low, high = wilson(self.hits, self.images)
        return 100 * low, 100 * high


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


def robustness_finding(rows: Sequence[SetRow], corrupted: Corrupted | None) -> AnalysisResult:
    """Everything about the sets that were given."""
    tables = {}
    blocks: list[Block] = []
    if rows:
        blocks += [_bars(rows), Table(HEADER, tuple(map(_cells, rows)), "Accuracy on each set.")]
        blocks.append(Bullets(tuple(f"**{row.title}**: {row.note}" for row in rows)))
        tables["robustness.csv"] = _csv(rows)
    if corrupted is not None:
        blocks += [Text(_about_corrupted(corrupted)), _lines(corrupted.errors), _corrupted_table(corrupted.errors)]
        tables["imagenet_c.csv"] = csv_text(("corruption", "group", "severity", "top1_error"), _long(corrupted.errors))
    return AnalysisResult(
        "robustness",
        _summary(rows, corrupted),
        Section("Other images of the same classes", tuple(blocks)),
        {"sets": [_plain(row) for row in rows], "imagenet_c": None if corrupted is None else _plain_errors(corrupted)},
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


def _plain(row: SetRow) -> dict[str, Any]:
    return asdict(row) | {"interval": list(row.interval)}


def _csv(rows: Sequence[SetRow]) -> str:
    plain = [{**asdict(row), "low": row.interval[0], "high": row.interval[1]} for row in rows]
    columns = [name for name in plain[0] if name not in ("data", "note")]
    return csv_text(columns, [[row[name] for name in columns] for row in plain])


def _about_corrupted(found: Corrupted) -> str:
    of_alexnet = mean_corruption_error(found.errors)
    further = sum(len(own) for name, own in found.errors.items() if name not in COUNTED)
    text = (
        f"ImageNet-C: {found.folders} of its {ALL_COUNTED} sets (15 corruptions at 5 severities)"
        + (f" and {further} of further corruptions" if further else "")
        + f"; {found.images:,} images, {found.skipped} unreadable. Its images are cropped already, so they are "
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


def _long(errors: Errors) -> list[tuple[object, ...]]:
    return [
        (name, CORRUPTIONS[name].group, severity, error)
        for name, by_severity in errors.items()
        for severity, error in by_severity.items()
    ]


def _plain_errors(found: Corrupted) -> dict[str, Any]:
    return {
        "errors": {name: {str(s): error for s, error in own.items()} for name, own in found.errors.items()},
        "corruption_errors": {name: corruption_error(name, own) for name, own in found.errors.items()},
        "mean_corruption_error": mean_corruption_error(found.errors),
        "mean_error": found.mean_error,
        "sets": found.folders,
        "images": found.images,
        "skipped": found.skipped,
    }


def _bars(rows: Sequence[SetRow]) -> Figure:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7.6, 1.1 + 0.45 * len(rows)), layout="constrained")
    axes = canvas.subplots()
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
    axes.spines[["top", "right"]].set_visible(False)
    caption = "The longer a bar, the more images of that set are classified correctly; thin lines are 95 % intervals."
    if any(row.full_classes < NUM_CLASSES for row in rows):
        caption += " ImageNet-A and -R have 200 classes each, and only these can be predicted."
    return Figure("robustness", svg_bytes(canvas), f"Top-1 accuracy on {len(rows)} sets of images", caption)


def _lines(errors: Errors) -> Figure:
    from matplotlib.figure import Figure as Canvas

    groups = [group for group in GROUPS if any(CORRUPTIONS[name].group == group for name in errors)]
    columns = min(2, len(groups))
    lines = -(-len(groups) // columns)
    canvas = Canvas(figsize=(4.9 * columns, 2.7 * lines), layout="constrained")
    panels = list(canvas.subplots(lines, columns, squeeze=False, sharey=True).flat)
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
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    caption = "The steeper a line rises, the more that corruption of ImageNet-C hurts as it grows more severe."
    return Figure("imagenet_c", svg_bytes(canvas), "Error by corruption and severity", caption)
