"""How certain measures are: bootstrap intervals, and tests of two classifiers on the same images.

A measure is a function of means over the images: each image has a row of values, a bootstrap sample draws N images with
repetition, and its measures come from the means of the drawn rows. Letters: N images, K values of an image, R samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from illama.evaluation.calibration import BINS, bin_of
from illama.evaluation.scores import Answers

LEVEL = 0.95
CHUNK_VALUES = 1 << 23  # counts of drawn images at a time: 64 MiB
_FIXED = 4  # columns of `measure_rows` before the bins


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float

    def in_percent(self) -> Interval:
        """That of a share."""
        return Interval(100 * self.low, 100 * self.high)


def resampled_means(rows: Any, resamples: int, seed: int) -> np.ndarray:
    """Means of bootstrap samples.

    Args:
        rows: Values of each image, (N, K), an array or a sparse matrix in scipy's CSR form.
        resamples: R.
        seed: Decides the samples; the same seed draws the same images of any N rows, so that two classifiers can be
            compared sample by sample.

    Returns:
        (R, K) float64. Memory stays below 100 MB beside it.
    """
    generator = np.random.default_rng(seed)
    images = rows.shape[0]
    means = np.empty((resamples, rows.shape[1]))
    step = max(1, CHUNK_VALUES // images)
    for start in range(0, resamples, step):
        drawn = np.empty((min(step, resamples - start), images))
        for sample in drawn:
            sample[:] = np.bincount(generator.integers(images, size=images), minlength=images)
        means[start : start + len(drawn)] = drawn @ rows
    return means / images


def percentile_interval(samples: np.ndarray, level: float = LEVEL) -> Interval:
    """The middle `level` of bootstrap samples (R,) of a measure (Efron 1979)."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def measure_rows(answers: Answers, bins: int = BINS) -> np.ndarray:
    """Of each image what `measures` needs the means of, (N, 4 + bins): hit, hit of five, loss, Brier score, gaps.

    The gap of an image, hit - confidence, stands in the column of its bin of confidence: the absolute values of these
    columns' means add up to the expected calibration error.
    """
    rows = np.zeros((len(answers), _FIXED + bins))
    rows[:, 0], rows[:, 1] = answers.hits, answers.ranks < 5
    rows[:, 2], rows[:, 3] = answers.losses, answers.briers
    rows[np.arange(len(answers)), _FIXED + bin_of(answers.confidences, bins)] = answers.hits - answers.confidences
    return rows


def measures(means: np.ndarray) -> dict[str, np.ndarray]:
    """The measures of means of `measure_rows`, (..., 4 + bins): top1 and top5 in percent, nll in nats, brier, ece."""
    return {
        "top1": 100 * means[..., 0],
        "top5": 100 * means[..., 1],
        "nll": means[..., 2],
        "brier": means[..., 3],
        "ece": np.abs(means[..., _FIXED:]).sum(axis=-1),
    }


def intervals(
    rows: Any, of_means: Callable[[np.ndarray], Mapping[str, np.ndarray]], resamples: int, seed: int
) -> dict[str, Interval]:
    """Percentile bootstrap intervals of measures of means.

    The calibration error of a bootstrap sample is larger than that of the images themselves on average, as theirs is
    larger than that of all images there could be: for a small set or a well calibrated network its interval can lie
    above the measured value.
    """
    return {
        name: percentile_interval(values) for name, values in of_means(resampled_means(rows, resamples, seed)).items()
    }


def balanced_accuracy_interval(answers: Answers, num_classes: int, resamples: int, seed: int) -> Interval:
    """Of the mean recall in percent; a class of which a sample has no image does not count in that sample."""
    from scipy.sparse import csr_matrix

    images = len(answers)
    # Two values per image, at its class: hit, and 1.
    columns = np.stack((answers.targets, answers.targets + num_classes), axis=1).ravel()
    values = np.stack((answers.hits.astype(np.float64), np.ones(images)), axis=1).ravel()
    rows = csr_matrix((values, columns, np.arange(0, 2 * images + 1, 2)), shape=(images, 2 * num_classes))
    means = resampled_means(rows, resamples, seed)
    hits, shares = means[:, :num_classes], means[:, num_classes:]
    recalls = np.divide(hits, shares, out=np.zeros_like(hits), where=shares > 0)
    return percentile_interval(100 * recalls.sum(axis=1) / (shares > 0).sum(axis=1))


class McNemar(NamedTuple):
    """The exact test of whether two classifiers are right equally often.

    Attributes:
        only_first: Images that only the first one has right.
        only_second: Images that only the second one has right.
        p_value: Chance of so uneven a split, or a more uneven one, where both are equally good; 1 where they never
            differ.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_hits: np.ndarray, second_hits: np.ndarray) -> McNemar:
    """McNemar's exact, two-sided test of two classifiers on the same images, (N,) bool each."""
    from scipy.stats import binomtest

    only_first = int((first_hits & ~second_hits).sum())
    only_second = int((second_hits & ~first_hits).sum())
    differing = only_first + only_second
    p_value = float(binomtest(only_first, differing, 0.5).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p_value)


@dataclass(frozen=True)
class Difference:
    """One measure of two classifiers on the same images.

    Attributes:
        first, second: The measure of each.
        interval: Bootstrap interval of second - first, both judged on the same drawn images.
        p_value: Chance of a difference at least this far from 0 where there is none. From McNemar's exact test for
            top1 and top5; else twice the smaller share of bootstrap differences on one side of 0.
        floor: What `p_value` cannot fall below: 2 / (R + 1) from the bootstrap, 0 from the exact test.
    """

    first: float
    second: float
    interval: Interval
    p_value: float
    floor: float

    @property
    def difference(self) -> float:
        """second - first."""
        return self.second - self.first


def paired_differences(
    first: Answers, second: Answers, *, bins: int = BINS, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Compare two classifiers by all of `measures` on the same images in the same order."""
    rows = np.concatenate((measure_rows(first, bins), measure_rows(second, bins)), axis=1)
    values = [measures(part) for part in np.split(rows.mean(axis=0), 2)]
    drawn = [measures(part) for part in np.split(resampled_means(rows, resamples, seed), 2, axis=1)]
    tops = {"top1": 1, "top5": 5}
    compared = {}
    for name in values[0]:
        differences = drawn[1][name] - drawn[0][name]
        if name in tops:
            floor, p_value = 0.0, mcnemar(first.ranks < tops[name], second.ranks < tops[name]).p_value
        else:
            floor, p_value = 2 / (resamples + 1), bootstrap_p_value(differences)
        compared[name] = Difference(
            float(values[0][name]), float(values[1][name]), percentile_interval(differences), p_value, floor
        )
    return compared


def bootstrap_p_value(differences: np.ndarray) -> float:
    """Two-sided, from bootstrap differences (R,); the measured data count as one sample more, so it is never 0."""
    one_side = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * one_side / (len(differences) + 1))


def wilson(hits: int, count: int) -> Interval:
    """Wilson's 95 % interval of a share (E. B. Wilson, 1927): right for small counts and shares near 0 or 1 too.

    Args:
        hits: How many of `count`.
        count: At least 1.
    """
    from scipy.stats import binomtest  # half a second of import

    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return Interval(float(interval.low), float(interval.high))
