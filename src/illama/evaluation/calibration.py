"""Confidence against accuracy, as pure functions of logits. All sums are in double precision.

Letters: N images, C classes. A confidence is the largest softmax probability. The functions work for one class, for
fewer images than bins and for images of a single class; no image at all, and logits that are not finite, are refused.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from illama.evaluation.scores import Answers, judgeable, softmax

BINS = 15
TEMPERATURES = (0.01, 100.0)  # temperature scaling looks between these


@dataclass(frozen=True, eq=False)
class Reliability:
    """Bins of confidence.

    Attributes:
        edges: Lower edge of the first bin and upper edge of each, (bins + 1,) float64.
        counts: Images of each bin, (bins,) int64.
        confidence: Mean confidence of each bin, (bins,) float64; NaN where it is empty.
        accuracy: Share of right predictions of each bin, 0 to 1, (bins,) float64; NaN where it is empty.
    """

    edges: np.ndarray
    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    def expected_error(self) -> float:
        """Mean of |accuracy - confidence| over the bins, weighted by their images."""
        filled = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[filled]
        return float((self.counts[filled] * gaps).sum() / self.counts.sum())

    def maximum_error(self) -> float:
        """Largest |accuracy - confidence| of a bin that is not empty (Guo et al. 2017, Eq. 5)."""
        return float(np.nanmax(np.abs(self.accuracy - self.confidence)))

    def worst_count(self) -> int:
        """Images of the bin of `maximum_error`, the first of equal ones."""
        return int(self.counts[np.nanargmax(np.abs(self.accuracy - self.confidence))])


def bin_of(confidences: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Number of the equal-width bin of each confidence: bin k, from 0, holds k / bins < confidence <= (k + 1) / bins.

    0 itself is in the first bin, and what rounding has put above 1 in the last one.
    """
    upper = np.arange(1, bins + 1) / bins  # not linspace, whose 3 * (1 / 15) is above 3 / 15
    return np.minimum(np.searchsorted(upper, confidences, side="left"), bins - 1)


def reliability(confidences: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Reliability:
    """Bins of equal width over (0, 1]."""
    return _binned(bin_of(confidences, bins), np.arange(bins + 1) / bins, confidences, hits)


def equal_mass_reliability(confidences: np.ndarray, hits: np.ndarray, bins: int = BINS) -> Reliability:
    """Bins of equally many images, give or take one, by rising confidence; with fewer images than bins one bin each.

    Images of the same confidence have their mean accuracy, so that their order does not matter where an edge falls
    between them.
    """
    order = np.argsort(confidences, kind="stable")
    rising = confidences[order]
    _, group = np.unique(rising, return_inverse=True)
    shared = (np.bincount(group, hits[order]) / np.bincount(group))[group]
    bins = min(bins, len(rising))
    numbers = np.repeat(np.arange(bins), [len(part) for part in np.array_split(rising, bins)])
    last = np.cumsum(np.bincount(numbers)) - 1
    return _binned(numbers, np.concatenate(([0.0], rising[last])), rising, shared)


def expected_calibration_error(answers: Answers, bins: int = BINS) -> float:
    """Sum over equal-width bins of (images / N) |accuracy - mean confidence|; the published numbers have 15 bins.

    Naeini et al. 2015; Guo et al. 2017, Eq. 3.
    """
    return reliability(answers.confidences, answers.hits, bins).expected_error()


def adaptive_calibration_error(answers: Answers, bins: int = BINS) -> float:
    """The same over bins of equally many images (Nguyen and O'Connor 2015): of the largest probability alone."""
    return equal_mass_reliability(answers.confidences, answers.hits, bins).expected_error()


def classwise_calibration_error(
    logits: ArrayLike, targets: ArrayLike, bins: int = BINS, temperature: float = 1.0
) -> float:
    """Mean over all C classes of the calibration error of that class's probability.

    For class c every image counts, not only those predicted as c: the images are put into equal-width bins by their
    probability of c, and the error is the sum over the bins of (images / N) |share that is of class c - mean
    probability of c| (static calibration error, Nixon et al. 2019; class-wise ECE, Kull et al. 2019). Classes
    without an image count too. With many classes almost all probabilities are near 0 and so is the result: compare it
    between networks of the same classes only.

    Raises:
        UserError: There is no image, or a logit that is not finite.
    """
    logits, targets = judgeable(logits, targets)
    classes = logits.shape[1]
    gaps = np.zeros(classes * bins)
    for rows, probabilities, _, _ in softmax(logits, temperature):
        cells = np.arange(classes) * bins + bin_of(probabilities, bins)
        differences = probabilities
        differences[np.arange(len(differences)), targets[rows]] -= 1
        gaps += np.bincount(cells.ravel(), differences.ravel(), minlength=classes * bins)
    return float(np.abs(gaps).sum() / (len(targets) * classes))


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature T for which softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017, 4.2).

    The loss is convex in 1 / T: the root of its derivative, the mean over the images of (expected logit under the
    probabilities - logit of the right class), is found by Brent's method. Fit it on other images than it is judged on.

    Returns:
        T within `TEMPERATURES`; a bound itself where the minimum lies beyond: the lower one where every answer is
        right, the upper one where the logits say nothing of the classes.

    Raises:
        UserError: There is no image, or a logit that is not finite.
    """
    from scipy.optimize import brentq

    logits, targets = judgeable(logits, targets)

    def slope(log_temperature: float) -> float:
        """Derivative by 1 / T, over N; it falls with T."""
        total = 0.0
        temperature = float(np.exp(log_temperature))
        for rows, probabilities, shifted, _ in softmax(logits, temperature):
            total += float((probabilities * shifted).sum() - np.take_along_axis(shifted, targets[rows, None], 1).sum())
        return total * temperature / len(targets)

    low, high = np.log(TEMPERATURES)
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def _binned(numbers: np.ndarray, edges: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> Reliability:
    bins = len(edges) - 1
    counts = np.bincount(numbers, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        confidence = np.bincount(numbers, confidences, minlength=bins) / counts
        accuracy = np.bincount(numbers, hits, minlength=bins) / counts
    return Reliability(edges, counts, confidence, accuracy)
