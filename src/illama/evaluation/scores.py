"""What is known of a network's answer to each image, and what accuracy and loss that is.

`Scores` are taken batch by batch on the device of a pass, in single precision; `Answers` know more of each image, from
saved logits in double precision. Letters: N images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from illama.errors import UserError

CHUNK_VALUES = 1 << 22  # logits in double precision at a time: 32 MiB, and a few arrays of that size beside it


def percent(hits: Tensor | np.ndarray) -> float:
    """Share of hits (N,) in percent."""
    return 100.0 * int(hits.sum()) / len(hits)


def _ranks(logits: Any, of_right: Any, before: Any) -> Any:
    """How many classes come before the right one, (N,), of logits (N, C), in either library's arrays.

    Of equal logits the lower class number comes first, so a model that says nothing is right on class 0 only.

    Args:
        logits: (N, C).
        of_right: That of the right class, (N, 1).
        before: Whether a class's number is lower than the right one's, (N, C).
    """
    return ((logits > of_right) | ((logits == of_right) & before)).sum(1)


@dataclass(frozen=True)
class Scores:
    """What accuracy and loss need to know of each image; far smaller than the logits.

    Attributes:
        targets: Right class, (N,) int64.
        ranks: How many classes come before the right one, (N,) int64; 0 is a hit.
        losses: Cross-entropy of the right class in nats, (N,) float32.
        indices: Position of each image in its source, (N,) int64.
    """

    targets: Tensor
    ranks: Tensor
    losses: Tensor
    indices: Tensor

    @classmethod
    def of(cls, logits: Tensor, targets: Tensor, indices: Tensor | None = None) -> Scores:
        """Judge logits (N, C) by integer targets (N,), on their device; `indices` count from 0 where not given.

        A row with a non-finite value ranks the right class last.
        """
        logits = logits.float()
        before = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
        finite = torch.isfinite(logits).all(dim=1)
        ranks = torch.where(finite, _ranks(logits, logits.gather(1, targets[:, None]), before), logits.shape[1])
        places = torch.arange(len(targets)) if indices is None else indices
        return cls(targets, ranks, F.cross_entropy(logits, targets, reduction="none"), places)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """All images of several batches in the order of their positions, on the CPU."""
        if not parts:
            none = torch.empty(0, dtype=torch.int64)
            return cls(none, none, none.float(), none)
        whole = [torch.cat([getattr(part, name) for part in parts]).cpu() for name in cls.__dataclass_fields__]
        order = torch.argsort(whole[-1], stable=True)
        return cls(*(values[order] for values in whole))

    def top(self, k: int) -> float:
        """Percent of images whose right class is among the first `k`; 100 when there are no more than k classes."""
        return percent(self.ranks < k)

    def mean_loss(self) -> float:
        """Mean cross-entropy in nats, summed in double precision."""
        return float(self.losses.double().mean())

    def per_class(self, num_classes: int) -> tuple[list[int], list[int]]:
        """(hits, images) of each class, in index order."""
        hits = torch.bincount(self.targets[self.ranks == 0], minlength=num_classes)
        return hits.tolist(), torch.bincount(self.targets, minlength=num_classes).tolist()


@dataclass(frozen=True, eq=False)
class Answers:
    """What measures of confidence need to know of each image.

    Attributes:
        targets: Right classes, (N,) int64.
        predictions: Classes of the largest logit, the lower one of equal ones, (N,) int64.
        ranks: How many classes come before the right one, (N,) int64; 0 is a hit.
        confidences: Largest probabilities, (N,) float64.
        losses: Negative log-likelihoods of the right class in nats, (N,) float64.
        briers: Sums over the classes of (probability - 1 if it is the right class, else 0)^2, (N,) float64: Brier's own
            definition (1950), 0 is perfect, 2 the worst. Some divide it by 2 or by the number of classes.
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
        logits, targets = judgeable(logits, targets)
        columns: list[tuple[np.ndarray, ...]] = []
        for rows, probabilities, shifted, sums in softmax(logits, temperature):
            own, given = targets[rows, None], logits[rows]
            right = np.take_along_axis(probabilities, own, 1)[:, 0]
            losses = np.log(sums) - np.take_along_axis(shifted, own, 1)[:, 0]
            briers = np.square(probabilities).sum(axis=1) - 2 * right + 1
            ranks = _ranks(given, np.take_along_axis(given, own, 1), np.arange(logits.shape[1]) < own)
            columns.append((given.argmax(axis=1), ranks, probabilities.max(axis=1), losses, briers))
        return cls(targets, *map(np.concatenate, zip(*columns, strict=True)))

    def take(self, rows: np.ndarray) -> Answers:
        """Those of some images."""
        return Answers(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def confusion(self, num_classes: int) -> np.ndarray:
        """How many images of each class got each answer, (C, C) int64: row = right class, column = prediction."""
        cells = np.bincount(self.targets * num_classes + self.predictions, minlength=num_classes**2)
        return cells.reshape(num_classes, num_classes)

    def recalls(self, num_classes: int) -> np.ndarray:
        """Percent of each class's images that are right, (C,) float64; NaN for a class without images."""
        counts = np.bincount(self.targets, minlength=num_classes)
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.asarray(100.0 * np.bincount(self.targets, self.hits, minlength=num_classes) / counts)

    def balanced_accuracy(self, num_classes: int) -> float:
        """Mean over the classes that have images of their percentage right: each class weighs the same."""
        return float(np.nanmean(self.recalls(num_classes)))


def judgeable(logits: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Logits (N, C) and targets (N,) as arrays.

    Raises:
        UserError: There is no image, or a logit that is not finite.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    if not len(targets):
        raise UserError("there is no image to judge; give a data set with images that can be read")
    refuse_non_finite(logits)
    return logits, targets


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


def softmax(logits: np.ndarray, temperature: float) -> Iterator[tuple[slice, np.ndarray, np.ndarray, np.ndarray]]:
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
