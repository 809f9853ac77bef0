"""Confidence against accuracy, as pure functions of logits. All sums are in double precision.

Letters: N images, C classes. A confidence is the largest softmax probability. The functions work for one class, for
fewer images than bins and for images of a single class; no image at all, and logits that are not finite, are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from illama.errors import UserError

BINS = 15
CHUNK_VALUES = 1 << 22  # logits in double precision at a time: 32 MiB, and a few arrays of that size beside it
TEMPERATURES = (0.01, 100.0)  # temperature scaling looks between these


@dataclass(frozen=True, eq=False)
class Answers:
    """What the measures need to know of each image; far smaller than the logits.

    Attributes:
        targets: Right classes, (N,) int64.
        predictions: Classes of the largest logit, the lower one of equal ones, (N,) int64.
        ranks: How many classes come before the right one, (N,) int64; 0 is a hit.
        confidences: Largest probabilities, (N,) float64.
        losses: Negative log-likelihoods of the right class in nats, (N,) float64.
        briers: Squared distances of the probabilities from the one-hot label, (N,) float64; see `brier_score`.
    """

    targets: np.ndarray
    predictions: np.ndarray
    ranks: np.ndarray
    confidences: np.ndarray
    losses: np.ndarray
    briers: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def hits(self) -> np.ndarray:
        """Whether the prediction is right, (N,) bool."""
        return self.ranks == 0

    @classmethod
    def of(cls, logits: ArrayLike, targets: ArrayLike, temperature: float = 1.0) -> Answers:
        """Judge logits (N, C), divided by a temperature, by integer targets (N,).

        Raises:
            UserError: There is no image, or a logit that is not finite.
        """
        logits, targets = _checked(logits, targets)
        columns: list[tuple[np.ndarray, ...]] = []
        for rows, probabilities, shifted, sums in _softmax(logits, temperature):
            own = targets[rows, None]
            right = np.take_along_axis(probabilities, own, 1)[:, 0]
            losses = np.log(sums) - np.take_along_axis(shifted, own, 1)[:, 0]
            briers = np.square(probabilities).sum(axis=1) - 2 * right + 1
            of_right = np.take_along_axis(logits[rows], own, 1)
            before = np.arange(logits.shape[1]) < own
            ranks = ((logits[rows] > of_right) | ((logits[rows] == of_right) & before)).sum(axis=1)
            columns.append((logits[rows].argmax(axis=1), ranks, probabilities.max(axis=1), losses, briers))
        return cls(targets, *map(np.concatenate, zip(*columns, strict=True)))

    def take(self, rows: np.ndarray) -> Answers:
        """Those of some images."""
        return Answers(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


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


def top_k_accuracy(answers: Answers, k: int) -> float:
    """Percent of images whose right class is among the first `k`; 100 when there are no more than k classes."""
    return 100.0 * float((answers.ranks < k).mean())


def negative_log_likelihood(answers: Answers) -> float:
    """Mean cross-entropy in nats."""
    return float(answers.losses.mean())


def brier_score(answers: Answers) -> float:
    """Mean over the images of the sum over the classes of (probability - 1 if it is the right class, else 0)^2.

    Brier's own definition (1950): 0 is perfect, 2 the worst. Some divide it by 2 or by the number of classes.
    """
    return float(answers.briers.mean())


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
    logits, targets = _checked(logits, targets)
    classes = logits.shape[1]
    gaps = np.zeros(classes * bins)
    for rows, probabilities, _, _ in _softmax(logits, temperature):
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

    logits, targets = _checked(logits, targets)

    def slope(log_temperature: float) -> float:
        """Derivative by 1 / T, over N; it falls with T."""
        total = 0.0
        temperature = float(np.exp(log_temperature))
        for rows, probabilities, shifted, _ in _softmax(logits, temperature):
            total += float((probabilities * shifted).sum() - np.take_along_axis(shifted, targets[rows, None], 1).sum())
        return total * temperature / len(targets)

    low, high = np.log(TEMPERATURES)
    if slope(low) <= 0:
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-10)))


def refuse_non_finite(logits: np.ndarray, positions: np.ndarray | None = None) -> None:
    """Refuse logits with infinities or NaN.

    Args:
        logits: (N, C).
        positions: Of the images in their source, (N,); the rows' own numbers when None.

    Raises:
        UserError: There are some: how many images, and the first one's position.
    """
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        first = int(broken[0] if positions is None else positions[broken[0]])
        raise UserError(
            f"the logits of {len(broken)} of {len(logits)} images are not finite, the first of image {first} (counted "
            "from 0); use weights from before the training diverged, or check the images' normalisation"
        )


def _checked(logits: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    logits, targets = np.asarray(logits), np.asarray(targets)
    if not len(targets):
        raise UserError("there is no image to judge; give a data set with images that can be read")
    refuse_non_finite(logits)
    return logits, targets


def _softmax(logits: np.ndarray, temperature: float) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
    """Rows at a time: which, probabilities, logits less the largest of their row over T, sums of their exponentials."""
    step = max(1, CHUNK_VALUES // logits.shape[1])
    for start in range(0, len(logits), step):
        rows = slice(start, start + step)
        shifted = logits[rows].astype(np.float64)
        shifted -= shifted.max(axis=1, keepdims=True)
        shifted /= temperature
        probabilities = np.exp(shifted)
        sums = probabilities.sum(axis=1)
        probabilities /= sums[:, None]
        yield rows, probabilities, shifted, sums


def _binned(numbers: np.ndarray, edges: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> Reliability:
    bins = len(edges) - 1
    counts = np.bincount(numbers, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 is the NaN of an empty bin
        confidence = np.bincount(numbers, confidences, minlength=bins) / counts
        accuracy = np.bincount(numbers, hits, minlength=bins) / counts
    return Reliability(edges, counts, confidence, accuracy)
