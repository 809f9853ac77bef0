"""Differences between rows, how certain they are, and the words for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal, get_args

from illama.reproduce.study import Metric

CONFIDENCE = 0.95  # of the interval that must leave out zero for a difference to be clear
CHANCE_DEVIATIONS = 3  # how far above guessing an accuracy may lie that still counts as having learned nothing
_NBSP = "\N{NO-BREAK SPACE}"

Verdict = Literal[
    "yes",
    "yes (one seed)",
    "yes, within noise",
    "partly",
    "level in the paper",
    "no difference",
    "nothing to cure",
    "no, within noise",
    "no (one seed)",
    "no",
]
WORST_LAST: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Difference:
    """A row's mean less another's.

    Attributes:
        value: The difference.
        low, high: Its 95 % confidence interval; None where a row has a single seed.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def verdict(self, *, more: bool) -> Verdict:
        """Whether it has the expected sign."""
        if self.value == 0:
            return "no difference"
        right = (self.value > 0) == more
        if self.low is None:
            return "yes (one seed)" if right else "no (one seed)"
        if self.is_clear:
            return "yes" if right else "no"
        return "yes, within noise" if right else "no, within noise"


def welch(own: Sequence[float], others: Sequence[float]) -> Difference:
    """Difference of two means with Welch's interval: seeds are taken for independent, variances for unequal.

    Values that do not differ at all between seeds say nothing of how far others would lie; the interval then reaches
    to zero.
    """
    value = mean(own) - mean(others)
    if min(len(own), len(others)) < 2:
        return Difference(value)
    parts = [stdev(values) ** 2 / len(values) for values in (own, others)]
    if sum(parts) == 0:
        return Difference(value, min(0.0, value), max(0.0, value))
    from scipy.stats import t

    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (own, others), strict=True)
    )
    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(parts))
    return Difference(value, value - half, value + half)


def at_chance(top1: float, classes: int, images: int) -> bool:
    """Whether an accuracy could come from guessing among equally frequent classes.

    Args:
        top1: Percent.
        classes: How many there are.
        images: How many were answered.
    """
    p = 1 / classes
    return top1 <= 100 * (p + CHANCE_DEVIATIONS * math.sqrt(p * (1 - p) / images))


def in_words(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation, on one line: 71.25 ± 0.31; the mean alone of one seed."""
    if not values:
        return ""
    spread = f"{_NBSP}±{_NBSP}{stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def difference_in_words(found: Difference, metric: Metric) -> str:
    """A difference with its interval: +0.52 (-0.10 to +1.14)."""
    digits = 2 if metric == "top1" else 3
    if found.low is None or found.high is None:
        return f"{found.value:+.{digits}f}"
    return f"{found.value:+.{digits}f} ({found.low:+.{digits}f}{_NBSP}to{_NBSP}{found.high:+.{digits}f})"
