"""Which classes a network knows, which it takes for others, and where it errs with conviction. Letter: C classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from illama.analysis.registry import ClassesOptions
from illama.analysis.report import AnalysisResult, Measure, canvas, name_text, open_frame, short
from illama.errors import UserError
from illama.evaluation.saved_logits import SavedLogits, class_mismatch, logits_for
from illama.evaluation.scores import Answers
from illama.evaluation.statistics import Interval, balanced_accuracy_interval
from illama.evaluation.subject import Subject
from illama.report import Block, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREY

MOST_BARS = 40  # with more classes the weakest and the strongest ones are drawn
BAR_INCHES = 0.2
LABEL_CELLS_UP_TO = 20  # classes; in a larger matrix numbers would not fit into the cells
MOST_CELLS = 30  # classes of a confusion matrix that can be read
FEWEST_IMAGES = 10  # of a class that is called the weakest or the strongest


def why_not(subject: Subject, options: ClassesOptions) -> str | None:
    """Why these images say nothing of the classes; None if they do."""
    return class_mismatch(subject) or _one_class(subject.source.labels, subject.meta.classes)


def classes(subject: Subject, options: ClassesOptions, workspace: Path | None = None) -> AnalysisResult:
    """Accuracy of each class, confusions, and the most confident mistakes with the images' places.

    The workspace keeps the logits.
    """
    saved = logits_for(subject, workspace, progress=True)
    return classes_of(saved, options, lambda position: Path(subject.source.location(position)).name)


def classes_of(
    saved: SavedLogits, options: ClassesOptions, place: Callable[[int], str] = "image {}".format
) -> AnalysisResult:
    """The same from saved logits.

    Args:
        saved: Logits of images of at least two classes.
        options: How much is shown.
        place: What to call the image at a position of the source; its number, counted from 0, by default.

    Raises:
        UserError: All images are of one class, or the logits are not finite.
    """
    problem = _one_class(saved.targets, saved.classes)
    if problem is not None:
        raise UserError(problem)
    answers = saved.answers()
    balanced = answers.balanced_accuracy(saved.num_classes)
    interval = balanced_accuracy_interval(answers, saved.num_classes, options.resamples, options.seed)
    per_class = _per_class(answers, saved.class_names)
    mistakes = most_confident_mistakes(answers, options.shown)
    wrong = [
        {
            "image": place(int(saved.indices[row])),
            "position": int(saved.indices[row]),
            "truth": saved.class_names[answers.targets[row]],
            "prediction": saved.class_names[answers.predictions[row]],
            "confidence": float(answers.confidences[row]),
        }
        for row in mistakes
    ]
    confused = [
        {"truth": saved.class_names[truth], "prediction": saved.class_names[taken], "images": count, "percent": percent}
        for truth, taken, count, percent in frequent_confusions(answers)
    ]
    values: dict[str, Any] = {
        "weights": saved.weights,
        "data": saved.data,
        "images": len(saved),
        "balanced_accuracy": balanced,
        "balanced_accuracy_interval": list(interval),
        "classes_without_images": sum(not row["images"] for row in per_class),
        "per_class": per_class,
        "confusions": confused[: options.shown],
        "most_confident_mistakes": wrong,
    }
    return AnalysisResult(
        name="classes",
        summary=_summary(balanced, interval, per_class),
        section=Section("Classes", tuple(_blocks(answers, per_class, confused[: options.shown], wrong, saved))),
        values=values,
        tables={
            "classes.csv": csv_text(tuple(per_class[0]), [tuple(row.values()) for row in per_class]),
            "confusions.csv": csv_text(
                ("truth", "prediction", "images", "percent"), [tuple(row.values()) for row in confused]
            ),
        },
    )


def frequent_confusions(answers: Answers) -> list[tuple[int, int, int, float]]:
    """(True class, prediction, images, percent of the true class's images) of wrong predictions, most images first."""
    counts = np.bincount(answers.targets)
    wrong = ~answers.hits
    both = np.stack((answers.targets[wrong], answers.predictions[wrong]), axis=1)
    pairs, images = np.unique(both, axis=0, return_counts=True)
    order = np.argsort(-images, kind="stable")
    return [
        (truth, taken, count, 100.0 * count / int(counts[truth]))
        for (truth, taken), count in zip(pairs[order].tolist(), images[order].tolist(), strict=True)
    ]


def most_confident_mistakes(answers: Answers, count: int) -> np.ndarray:
    """Rows of the wrong predictions with the largest confidences, the largest first, `count` at most."""
    wrong = np.flatnonzero(~answers.hits)
    return wrong[np.argsort(-answers.confidences[wrong], kind="stable")[:count]]


def _one_class(targets: np.ndarray, names: tuple[str, ...]) -> str | None:
    if len(np.unique(targets)) != 1:
        return None
    name = name_text(names[targets[0]]) if names else str(targets[0])
    return f"all {len(targets)} images are of class {name}; give a data set with images of two classes at least"


def _per_class(answers: Answers, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row for each class in index order: nothing is said of the accuracy where it has no image."""
    size = len(names)
    images, predicted = (np.bincount(numbers, minlength=size) for numbers in (answers.targets, answers.predictions))
    correct = np.bincount(answers.targets[answers.hits], minlength=size)
    confidence = np.bincount(answers.targets, answers.confidences, minlength=size)
    accuracy = answers.recalls(size)
    return [
        {
            "class": name,
            "images": int(images[c]),
            "correct": int(correct[c]),
            "accuracy": float(accuracy[c]) if images[c] else None,
            "predicted": int(predicted[c]),
            "precision": 100.0 * float(correct[c] / predicted[c]) if predicted[c] else None,
            "mean_confidence": float(confidence[c] / images[c]) if images[c] else None,
        }
        for c, name in enumerate(names)
    ]


def _summary(balanced: float, interval: Interval, per_class: list[dict[str, Any]]) -> tuple[Measure, ...]:
    measures = [Measure("balanced accuracy", f"{balanced:.2f} % ({interval.low:.2f} to {interval.high:.2f})")]
    enough = sorted((row for row in per_class if row["images"] >= FEWEST_IMAGES), key=lambda row: row["accuracy"])
    if enough:
        measures.append(Measure("weakest class", _accuracy(enough[0])))
        measures.append(Measure("strongest class", _accuracy(enough[-1])))
    return tuple(measures)


def _accuracy(row: dict[str, Any]) -> str:
    return f"{name_text(row['class'])}, {row['accuracy']:.1f} % of {row['images']:,}"


def _blocks(
    answers: Answers,
    per_class: list[dict[str, Any]],
    confused: list[dict[str, Any]],
    wrong: list[dict[str, Any]],
    saved: SavedLogits,
) -> list[Block]:
    with_images = [row for row in per_class if row["images"]]
    about = (
        "Accuracy of a class is the share of its images that are predicted correctly (its recall). The balanced "
        "accuracy is the mean over the classes, each of the same weight, however many images it has."
    )
    few = sum(row["images"] < FEWEST_IMAGES for row in with_images)
    if few:
        about += f" {few} classes with fewer than {FEWEST_IMAGES} images are called neither weakest nor strongest."
    if len(with_images) < len(per_class):
        about += f" {len(per_class) - len(with_images)} classes of the network have no image here and are left out."
    blocks: list[Block] = [Text(about), _recall_figure(with_images)]
    if saved.num_classes <= MOST_CELLS:
        blocks.append(confusion_figure(answers.confusion(saved.num_classes), saved.class_names))
    if confused:
        blocks.append(_confusion_table(confused))
    blocks.append(_mistake_table(wrong) if wrong else Text("There is no mistake."))
    return blocks


def _confusion_table(confused: list[dict[str, Any]]) -> Table:
    rows = (
        (name_text(row["truth"]), name_text(row["prediction"]), f"{row['images']:,}", f"{row['percent']:.1f} %")
        for row in confused
    )
    header = ("true class", "predicted", "images", "of the class's images")
    return Table(header, tuple(rows), "The most frequent confusions; confusions.csv has all.")


def _mistake_table(wrong: list[dict[str, Any]]) -> Table:
    rows = (
        (
            " ".join(row["image"].split()),
            name_text(row["truth"]),
            name_text(row["prediction"]),
            f"{100 * row['confidence']:.2f} %",
        )
        for row in wrong
    )
    return Table(
        ("image", "true class", "predicted", "confidence"),
        tuple(rows),
        "The most confident mistakes. Look at these images first: what is wrong may be the label.",
    )


def _recall_figure(with_images: list[dict[str, Any]]) -> Figure:
    rising = sorted(with_images, key=lambda row: row["accuracy"])
    left_out = 0
    if len(rising) > MOST_BARS:
        left_out = len(rising) - MOST_BARS
        rising = rising[: MOST_BARS // 2] + rising[-MOST_BARS // 2 :]
    bars = [(row["class"], row["accuracy"], row["images"]) for row in rising]
    return Figure(
        "class-accuracy",
        recall_picture(bars, gap_after=MOST_BARS // 2 if left_out else None),
        "Bars of accuracy by class, the weakest first",
        "Each bar is a class and its length the percentage of its images that are predicted correctly, the weakest "
        "class on top."
        + (f" The {left_out} classes between the weakest and the strongest are left out." if left_out else ""),
    )


def recall_picture(bars: Sequence[tuple[str, float, int]], gap_after: int | None) -> bytes:
    """Horizontal bars, as SVG.

    Args:
        bars: Class, percent, images; drawn from the top down.
        gap_after: Bars before a gap, where classes between the weakest and the strongest are left out.
    """
    places = np.arange(len(bars), dtype=float)
    if gap_after is not None:
        places[gap_after:] += 1.5
    figure = canvas(8, 0.9 + BAR_INCHES * (places[-1] + 1))
    axes = open_frame(figure.subplots())
    axes.barh(places, [percent for _, percent, _ in bars], 0.8, color=BLUE)
    for place, (_, percent, images) in zip(places, bars, strict=True):
        text = f"{percent:.1f} % of {images:,}"
        axes.annotate(text, (percent, place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    if gap_after is not None:
        axes.text(1, gap_after + 0.25, "...", va="center", color=GREY)
    axes.set_yticks(places, [short(name) for name, _, _ in bars], fontsize=8, parse_math=False)
    axes.set_ylim(places[-1] + 0.7, -0.7)
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, % of the class's images")
    return svg_bytes(figure)


def confusion_figure(confusion: np.ndarray, names: Sequence[str]) -> Figure:
    """Percent of each row as shades, and as numbers where they fit; a class without images is a white row."""
    counts = confusion.sum(axis=1, keepdims=True)
    percent = 100.0 * np.divide(confusion, counts, out=np.full(confusion.shape, np.nan), where=counts > 0)
    side = min(9.5, 3.2 + 0.42 * len(names))
    figure = canvas(side + 1, side, "compressed")
    axes = figure.subplots()
    # Shades rise with the square root: a few percent off the diagonal must be seen beside ninety on it.
    shades = axes.imshow(np.sqrt(percent), cmap="Blues", vmin=0, vmax=10)
    labels = [short(name) for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(names)), labels, fontsize=8, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("true class")
    if len(names) <= LABEL_CELLS_UP_TO:
        for (row, column), value in np.ndenumerate(percent):
            if value >= 0.05:  # else "0.0", or the NaN of a class without images
                color = "white" if value > 40 else "black"
                text = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=7)
    scale = figure.colorbar(shades, ax=axes, shrink=0.8, label="% of the true class's images")
    scale.set_ticks(np.sqrt([0, 1, 5, 20, 50, 100]).tolist(), labels=["0", "1", "5", "20", "50", "100"])
    return Figure(
        "confusion",
        svg_bytes(figure),
        "Confusion matrix in percent of each true class's images",
        "Read along a row: of the images of the class at its left, what percentage got which prediction. Shaded cells "
        "off the diagonal are classes that are mistaken for another.",
    )
