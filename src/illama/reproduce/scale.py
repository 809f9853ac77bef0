"""Which values a picture's scale is made for."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

FAR = 1.5  # a gap of so many times the range of the majority: on one scale it would have less than half the length
FAR_SHARE = 0.25  # and at least this share of the majority's median, or three nearly equal values would have an outlier


def far_from_most(values: Sequence[float]) -> list[bool]:
    """Which values lie beyond a gap so wide that the majority would be squashed on one scale with them.

    Args:
        values: Finite numbers, such as the accuracies of a study's rows of which one collapsed to chance.

    Returns:
        For each value whether it is left out of the scale. The majority never is; of two values neither is.
    """
    far = [False] * len(values)
    while True:
        kept = sorted(value for value, out in zip(values, far, strict=True) if not out)
        cuts = [
            (high - low, high, at)
            for at, (low, high) in enumerate(itertools.pairwise(kept), start=1)
            if at != len(kept) - at  # two halves: neither is the exception
        ]
        if not cuts:
            return far
        gap, border, below = max(cuts)
        lower_is_far = below < len(kept) - below
        majority = kept[below:] if lower_is_far else kept[:below]
        too_few = 2 * len(majority) <= len(values)
        if too_few or gap <= max(FAR * (majority[-1] - majority[0]), FAR_SHARE * abs(statistics.median(majority))):
            return far
        far = [out or (value < border) == lower_is_far for value, out in zip(values, far, strict=True)]


def with_margin(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a scale that has these values (at least one) inside, even if all of them are equal."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
