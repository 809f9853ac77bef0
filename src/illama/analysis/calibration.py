"""How far a network's confidence can be trusted (Table 8, Fig. 7), and what one temperature would mend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from illama.analysis.registry import CalibrationOptions
from illama.analysis.report import AnalysisResult, Measure, canvas, open_frame
from illama.evaluation.calibration import (
    TEMPERATURES,
    Reliability,
    adaptive_calibration_error,
    classwise_calibration_error,
    fit_temperature,
    reliability,
)
from illama.evaluation.saved_logits import SavedLogits, class_mismatch, logits_for
from illama.evaluation.scores import Answers
from illama.evaluation.statistics import Interval, intervals, measure_rows, measures
from illama.evaluation.subject import Subject
from illama.report import Block, Figure, Section, Table, Text, csv_text, svg_bytes
from illama.report.formats import BLUE, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PLACES = {"top1": 2, "top5": 2, "nll": 3}  # decimals; of the other measures four
PUBLISHED = "0.0335 (iLLaMA-B, ImageNet-1K)"
ABOUT = (
    "The confidence of a prediction is its softmax probability: of the predictions made with a confidence of 0.8 a "
    "calibrated network has 80 % correct. The expected calibration error (ECE) puts the images into {bins} bins of "
    "equal width by confidence and takes the mean of |accuracy - mean confidence|, weighted by the images of each bin. "
    "The adaptive one has bins of equally many images, the class-wise one is the mean over all classes of the error of "
    "that class's probability, the maximum is the worst bin, however few images are in it. The Brier score is the "
    "squared distance of the probabilities from the one-hot label, summed over the classes (0 to 2). Published ECE of "
    "base models on ImageNet-1K: ConvNeXt-B 0.0281, DeiT3-B 0.0415, iLLaMA-B 0.0335."
)
READING = (
    "A blue bar that ends on the dashed diagonal is a calibrated bin; gap above the bar: overconfident; gap inside the "
    "bar: underconfident. Below: how many images are in each bin"
)
RESAMPLING = (
    "Intervals hold the middle 95 % of {resamples:,} bootstrap samples of the images. The calibration error of a "
    "sample is larger than that of the images themselves on average, so its interval leans upwards and may exclude the "
    "value of a well calibrated network."
)


class Scaling(NamedTuple):
    """Temperature scaling, fitted on some images and tested on the others.

    Attributes:
        temperature: What the logits are divided by.
        fitted_on: Images that it was fitted on.
        before, after: All measures of the other images, without and with it.
        bins: Reliability of the other images with it.
        tested_on: The other images.
    """

    temperature: float
    fitted_on: int
    before: dict[str, float]
    after: dict[str, float]
    bins: Reliability
    tested_on: int


def why_not(subject: Subject, options: CalibrationOptions) -> str | None:
    """Why these images say nothing of this network's calibration; None if they do."""
    return class_mismatch(subject)


def calibration(subject: Subject, options: CalibrationOptions, workspace: Path | None = None) -> AnalysisResult:
    """Accuracy, likelihood and calibration of a network, with intervals; the workspace keeps the logits."""
    return calibration_of(logits_for(subject, workspace, progress=True), options)


def calibration_of(saved: SavedLogits, options: CalibrationOptions) -> AnalysisResult:
    """The same from saved logits. One image, one class and fewer images than bins are enough.

    Raises:
        UserError: The logits are not finite.
    """
    answers = saved.answers()
    bins = reliability(answers.confidences, answers.hits, options.bins)
    measured = all_measures(saved.logits, answers, options.bins)
    ranges = intervals(measure_rows(answers, options.bins), measures, options.resamples, options.seed)
    scaling = scale_temperature(saved, options) if len(saved) > 1 else None
    values: dict[str, Any] = {
        "weights": saved.weights,
        "data": saved.data,
        "softness": saved.softness,
        "images": len(saved),
        "skipped": len(saved.skipped),
        "classes": saved.num_classes,
        "bins": options.bins,
        "measures": measured,
        "intervals": {name: list(interval) for name, interval in ranges.items()},
        "temperature_scaling": None if scaling is None else scaling._asdict() | {"bins": _rows(scaling.bins)},
        "reliability": _rows(bins),
    }
    of_bins = [(1.0, *row.values()) for row in _rows(bins)]
    of_bins += [] if scaling is None else [(scaling.temperature, *row.values()) for row in _rows(scaling.bins)]
    return AnalysisResult(
        name="calibration",
        summary=_summary(saved, measured, ranges, scaling, options.bins),
        section=Section("Calibration", tuple(_blocks(saved, measured, ranges, bins, scaling, options))),
        values=values,
        tables={
            "reliability.csv": csv_text(("temperature", "low", "high", "images", "confidence", "accuracy"), of_bins)
        },
    )


def all_measures(logits: np.ndarray, answers: Answers, bins: int, temperature: float = 1.0) -> dict[str, float]:
    """Every measure by its short name, and the images of the bin of the maximum calibration error.

    Args:
        logits: (N, C).
        answers: Those of the logits at that temperature.
        bins: Of confidence.
        temperature: What the logits are divided by.
    """
    of_bins = reliability(answers.confidences, answers.hits, bins)
    measured = {name: float(value) for name, value in measures(measure_rows(answers, bins).mean(axis=0)).items()}
    return measured | {
        "adaptive_ece": adaptive_calibration_error(answers, bins),
        "classwise_ece": classwise_calibration_error(logits, answers.targets, bins, temperature),
        "maximum_ce": of_bins.maximum_error(),
        "maximum_ce_images": of_bins.worst_count(),
    }


def scale_temperature(saved: SavedLogits, options: CalibrationOptions) -> Scaling:
    """Fit a temperature on a share of the images, chosen at random, and test it on the others; two at least."""
    order = np.random.default_rng(options.seed).permutation(len(saved))
    count = min(max(1, round(options.fit_share * len(saved))), len(saved) - 1)
    fitted, others = np.sort(order[:count]), np.sort(order[count:])
    temperature = fit_temperature(saved.logits[fitted], saved.targets[fitted])
    logits, targets = saved.logits[others], saved.targets[others]
    after = Answers.of(logits, targets, temperature)
    return Scaling(
        temperature,
        count,
        all_measures(logits, Answers.of(logits, targets), options.bins),
        all_measures(logits, after, options.bins, temperature),
        reliability(after.confidences, after.hits, options.bins),
        len(others),
    )


def measure_names(num_classes: int, bins: int) -> dict[str, str]:
    """Short name -> name for people, in the order of a table; top-5 says nothing of five classes or fewer."""
    names = {"top1": "top-1"} | ({"top5": "top-5"} if num_classes > 5 else {})
    return names | {
        "nll": "negative log-likelihood",
        "brier": "Brier score",
        "ece": f"expected calibration error, {bins} bins",
        "adaptive_ece": f"adaptive calibration error, {bins} bins",
        "classwise_ece": f"class-wise calibration error, {bins} bins",
        "maximum_ce": f"maximum calibration error, {bins} bins",
    }


def number(name: str, value: float) -> str:
    """A measure with its unit."""
    unit = " %" if name in ("top1", "top5") else " nats" if name == "nll" else ""
    return f"{value:.{PLACES.get(name, 4)}f}{unit}"


def bare_range(name: str, interval: Interval) -> str:
    """An interval without its unit: "74.1 to 75.6"."""
    places = PLACES.get(name, 4)
    return f"{interval.low:.{places}f} to {interval.high:.{places}f}"


def _summary(
    saved: SavedLogits, measured: dict[str, float], ranges: dict[str, Interval], scaling: Scaling | None, bins: int
) -> tuple[Measure, ...]:
    lines = []
    for name, words in measure_names(saved.num_classes, bins).items():
        if name in ranges:
            text = f"{number(name, measured[name])} ({bare_range(name, ranges[name])})"
            lines.append(Measure(words, text, PUBLISHED if name == "ece" and bins == 15 else ""))
    if scaling is not None:
        how = f"T = {scaling.temperature:.3f}, {scaling.tested_on:,} held-out images"
        text = f"{scaling.after['ece']:.4f}, before {scaling.before['ece']:.4f} ({how})"
        lines.append(Measure("ECE after temperature scaling", text))
    return tuple(lines)


def _blocks(
    saved: SavedLogits,
    measured: dict[str, float],
    ranges: dict[str, Interval],
    bins: Reliability,
    scaling: Scaling | None,
    options: CalibrationOptions,
) -> list[Block]:
    panels = {f"as it is, {len(saved):,} images": bins}
    more = ", and accuracy and mean confidence of all."
    if scaling is not None:
        panels[f"logits / {scaling.temperature:.3f}, {scaling.tested_on:,} held-out images"] = scaling.bins
        more += f" Right: after temperature scaling, fitted on {scaling.fitted_on:,} images."
    alt = "Reliability diagrams: accuracy over confidence in bins, with a histogram of the confidences"
    blocks: list[Block] = [
        Text(ABOUT.format(bins=options.bins)),
        reliability_figure("reliability", panels, alt, more),
        _table(saved, measured, ranges, scaling, options.bins),
        Text(RESAMPLING.format(resamples=options.resamples)),
        Text(_about_scaling(scaling)),
    ]
    if len(np.unique(saved.targets)) == 1:
        name = saved.class_names[saved.targets[0]]
        blocks.append(Text(f"All images are of one class, {name}: the numbers say nothing of the other classes."))
    if saved.skipped:
        blocks.append(Text(f"{len(saved.skipped)} images could not be read and are left out."))
    return blocks


def _about_scaling(scaling: Scaling | None) -> str:
    if scaling is None:
        return "Temperature scaling needs two images: one to fit it on, one to test it on."
    fate = {
        TEMPERATURES[0]: f" {scaling.temperature:g} is the least that is tried: every prediction on them was correct.",
        TEMPERATURES[1]: f" {scaling.temperature:g} is the most that is tried: the logits say nothing of the classes.",
    }
    return (
        f"Temperature scaling divides all logits by one number, which changes no prediction. It was fitted on "
        f"{scaling.fitted_on:,} images chosen at random, where {scaling.temperature:.3f} has the least negative "
        f"log-likelihood, and is tested on the other {scaling.tested_on:,}. Above 1: the network is overconfident."
        + fate.get(scaling.temperature, "")
    )


def _table(
    saved: SavedLogits, measured: dict[str, float], ranges: dict[str, Interval], scaling: Scaling | None, bins: int
) -> Table:
    header = ["measure", f"all {len(saved):,} images", "95 % interval"]
    if scaling is not None:
        header += [f"{scaling.tested_on:,} of them", f"the same, logits / {scaling.temperature:.3f}"]
    rows = []
    for name, words in measure_names(saved.num_classes, bins).items():
        row = [words, _cell(name, measured), bare_range(name, ranges[name]) if name in ranges else ""]
        if scaling is not None:
            row += [_cell(name, scaling.before), _cell(name, scaling.after)]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _cell(name: str, measured: dict[str, float]) -> str:
    """A measure; where it is one bin's, with the images of that bin."""
    images = f" (images in the bin: {measured['maximum_ce_images']:,})" if name == "maximum_ce" else ""
    return number(name, measured[name]) + images


def _rows(bins: Reliability) -> list[dict[str, float | int | None]]:
    return [
        {
            "low": float(low),
            "high": float(high),
            "images": int(count),
            "confidence": float(confidence) if count else None,
            "accuracy": float(accuracy) if count else None,
        }
        for low, high, count, confidence, accuracy in zip(
            bins.edges[:-1], bins.edges[1:], bins.counts, bins.confidence, bins.accuracy, strict=True
        )
    ]


def reliability_figure(name: str, panels: Mapping[str, Reliability], alt: str, more: str) -> Figure:
    """Diagrams above histograms: bars = accuracy, shaded = gap to the mean confidence, ECE in the picture (Fig. 7).

    Args:
        name: Of the file.
        panels: Of which images -> bins of equal width.
        alt: What the picture shows.
        more: Goes on with the caption.
    """
    figure = canvas(4.6 * len(panels), 5.6)
    axes = figure.subplots(2, len(panels), squeeze=False, height_ratios=(3, 1), sharex=True, sharey="row")
    for (title, bins), (diagram, histogram) in zip(panels.items(), axes.T, strict=True):
        _draw_bins(diagram, bins)
        diagram.set_title(title, parse_math=False, fontsize="medium")
        _draw_histogram(histogram, bins)
    axes[0, 0].set_ylabel("accuracy in the bin")
    axes[1, 0].set_ylabel("images, %")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    for drawn in axes[1, 0].get_legend_handles_labels()[0]:
        handles.append(drawn)
        labels.append(drawn.get_label())
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    return Figure(name, svg_bytes(figure), alt, READING + more)


def _draw_bins(axes: Axes, bins: Reliability) -> None:
    from matplotlib.colors import to_rgba

    filled = bins.counts > 0
    left, width = bins.edges[:-1][filled], np.diff(bins.edges)[filled]
    accuracy, confidence = bins.accuracy[filled], bins.confidence[filled]
    axes.bar(left, accuracy, width, align="edge", color=BLUE, edgecolor="white", label="accuracy")
    axes.bar(
        left,
        np.abs(accuracy - confidence),
        width,
        bottom=np.minimum(accuracy, confidence),
        align="edge",
        facecolor=to_rgba(ORANGE, 0.35),
        edgecolor=ORANGE,
        hatch="///",
        linewidth=0.8,
        label="gap to the mean confidence",
    )
    axes.plot([0, 1], [0, 1], linestyle="--", color="black", linewidth=1)
    error = f"ECE {bins.expected_error():.4f}"
    box = {"facecolor": "white", "edgecolor": GREY, "boxstyle": "round"}
    axes.text(0.05, 0.93, error, transform=axes.transAxes, va="top", bbox=box)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    open_frame(axes)


def _draw_histogram(axes: Axes, bins: Reliability) -> None:
    filled = bins.counts > 0
    share = bins.counts / bins.counts.sum()
    axes.bar(bins.edges[:-1], 100 * share, width=np.diff(bins.edges), align="edge", color=GREY, edgecolor="white")
    for values, style, color, label in (
        (bins.accuracy, "-", BLUE, "accuracy of all"),
        (bins.confidence, ":", ORANGE, "mean confidence of all"),
    ):
        axes.axvline(float((share * values)[filled].sum()), linestyle=style, color=color, linewidth=2, label=label)
    axes.set_xlabel("confidence (largest softmax probability)")
    open_frame(axes)
