"""Two networks on the same images: which is better by each measure, and how certain that is."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from illama.analysis.calibration import PLACES, measure_names, number, reliability_figure
from illama.analysis.registry import ComparisonOptions
from illama.analysis.report import AnalysisResult, Measure
from illama.data.imagenet import readable
from illama.errors import UserError
from illama.evaluation.calibration import reliability
from illama.evaluation.saved_logits import SavedLogits
from illama.evaluation.scores import Answers
from illama.evaluation.statistics import Difference, McNemar, mcnemar, paired_differences
from illama.report import Section, Table, Text, csv_text

BETTER_IF_LARGER = ("top1", "top5")


def compare(first: SavedLogits, second: SavedLogits, options: ComparisonOptions) -> AnalysisResult:
    """Measures side by side, with paired intervals of their differences and p-values.

    Only images that both could read count; both have to be of the same data set. One image is enough for a table, not
    for a verdict.

    Args:
        first, second: Logits of two networks.
        options: Bins of the calibration error, bootstrap samples and seed.

    Raises:
        UserError: The two differ in classes or images (what differs is said), or logits are not finite.
    """
    problem = mismatch(first, second)
    if problem is not None:
        raise UserError(problem)
    common, rows, other_rows = np.intersect1d(first.indices, second.indices, assume_unique=True, return_indices=True)
    if not len(common):
        raise UserError("no image was read by both networks; save both files of logits again")
    answers = _answers("first", first).take(rows), _answers("second", second).take(other_rows)
    split = mcnemar(answers[0].hits, answers[1].hits)
    differences = paired_differences(*answers, bins=options.bins, resamples=options.resamples, seed=options.seed)
    names = {
        short: words for short, words in measure_names(first.num_classes, options.bins).items() if short in differences
    }
    shared = _Shared(len(common), len(first) - len(common), len(second) - len(common))
    summary = [Measure(f"{words}, second - first", _in_words(name, differences[name])) for name, words in names.items()]
    if shared.left_out:
        summary.append(Measure("images compared", shared.in_words()))
    panels = {
        title: reliability(one.confidences, one.hits, options.bins)
        for title, one in zip(("first", "second"), answers, strict=True)
    }
    alt = "Reliability diagrams of the two networks side by side"
    compared = tuple(
        (words, *_cells(name, differences[name]), _verdict(name, differences[name])) for name, words in names.items()
    )
    plain = {name: _plain(differences[name]) for name in names}
    header = ("measure", "first", "second", "difference", "low", "high", "p_value")
    values: dict[str, Any] = {
        "first": first.weights,
        "second": second.weights,
        "data": first.data,
        "images": shared.both,
        "only_in_first": shared.only_first,
        "only_in_second": shared.only_second,
        "mcnemar": split._asdict(),
        "measures": plain,
    }
    return AnalysisResult(
        name="comparison",
        summary=tuple(summary),
        section=Section(
            "Comparison",
            (
                Text(f"First: {first.weights}, softness {first.softness:g}."),
                Text(f"Second: {second.weights}, softness {second.softness:g}."),
                Text(_about(first, shared, options)),
                Table(("measure", "first", "second", "difference", "95 % interval", "p-value", "better"), compared),
                Text(_agreement(split, *answers)),
                reliability_figure("comparison-reliability", panels, alt, "."),
            ),
        ),
        values=values,
        tables={"comparison.csv": csv_text(header, [(name, *plain[name].values()) for name in names])},
    )


def mismatch(first: SavedLogits, second: SavedLogits) -> str | None:
    """Why two networks' logits cannot be compared, in one line that says what differs; None if they can."""
    if first.num_classes != second.num_classes:
        return (
            f"the two networks have {first.num_classes} and {second.num_classes} classes ({first.weights}; "
            f"{second.weights}); only predictions among the same classes can be compared"
        )
    # Where one network's names are unknown, the images' own names and numbers, which `data_id` holds, have to do.
    if first.classes and second.classes and first.class_names != second.class_names:
        pairs = zip(first.class_names, second.class_names, strict=True)
        place, (own, other) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
        own, other = readable(own), readable(other)
        return f"class {place} is {own!r} for the first and {other!r} for the second; number the classes alike"
    if first.data_id != second.data_id:
        return (
            f"the two were made on other images: {first.data!r} and {second.data!r}; save both with the same --data "
            "and --split"
        )
    return None


class _Shared(NamedTuple):
    """Images in both files of logits, and in one of them alone."""

    both: int
    only_first: int
    only_second: int

    @property
    def left_out(self) -> int:
        return self.only_first + self.only_second

    def in_words(self) -> str:
        """ "100 images in both; 9,900 are only in the first"."""
        alone = [
            f"{count:,} {'is' if count == 1 else 'are'} only in the {which}"
            for which, count in (("first", self.only_first), ("second", self.only_second))
            if count
        ]
        return "; ".join([f"{self.both:,} images in both", *alone])


def _answers(which: str, saved: SavedLogits) -> Answers:
    try:
        return saved.answers()
    except UserError as error:
        raise UserError(f"the {which}, {saved.weights}: {error}") from None


def _about(first: SavedLogits, shared: _Shared, options: ComparisonOptions) -> str:
    text = f"Data: {first.data}. "
    if shared.left_out:
        text += f"**Compared on the {shared.in_words()}.** "
    return (
        f"{text}A difference is second - first; its interval holds the middle 95 % of {options.resamples:,} bootstrap "
        "samples of the images, both networks tested on the same ones. The p-value is the chance of a difference at "
        "least so large where there is none: of top-1 and top-5 by McNemar's exact test, else from the bootstrap, "
        f"which cannot show less than {_p(2 / (options.resamples + 1))}."
    )


def _agreement(split: McNemar, first: Answers, second: Answers) -> str:
    both = int((first.hits & second.hits).sum())
    neither = len(first) - both - split.only_first - split.only_second
    same = int((first.predictions == second.predictions).sum())
    return (
        f"Both are correct on {both:,} images, the first alone on {split.only_first:,}, the second alone on "
        f"{split.only_second:,}, neither on {neither:,}; their predictions agree on {100 * same / len(first):.1f} %."
    )


def _verdict(name: str, one: Difference) -> str:
    """Which is better, where the interval leaves no doubt."""
    if one.interval.low <= 0 <= one.interval.high:
        return "undecided"
    return "second" if (one.difference > 0) == (name in BETTER_IF_LARGER) else "first"


def _cells(name: str, one: Difference) -> tuple[str, str, str, str, str]:
    """First, second, difference, interval and p-value in words; "<=" where it may be less than a bootstrap can show."""
    places = PLACES.get(name, 4)
    unit = " points" if name in BETTER_IF_LARGER else " nats" if name == "nll" else ""
    interval = f"{one.interval.low:+.{places}f} to {one.interval.high:+.{places}f}"
    p_value = ("<= " if one.p_value <= one.floor else "") + _p(one.p_value)
    return (
        number(name, one.first),
        number(name, one.second),
        f"{one.difference:+.{places}f}{unit}",
        interval,
        p_value,
    )


def _in_words(name: str, one: Difference) -> str:
    first, second, difference, interval, p_value = _cells(name, one)
    return f"{first} and {second}: {difference} ({interval}), p {p_value if '<' in p_value else f'= {p_value}'}"


def _p(p_value: float) -> str:
    return f"{p_value:.1e}" if p_value < 0.001 else f"{p_value:.3f}"


def _plain(one: Difference) -> dict[str, Any]:
    return {
        "first": one.first,
        "second": one.second,
        "difference": one.difference,
        "low": one.interval.low,
        "high": one.interval.high,
        "p_value": one.p_value,
    }
