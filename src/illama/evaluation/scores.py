"""Accuracy and loss as pure functions of logits. Letters: N images, C classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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

        Of equal logits the lower class number comes first, so a model that says nothing is right on class 0 only.
        A row with a non-finite value ranks the right class last.
        """
        logits = logits.float()
        own = logits.gather(1, targets[:, None])
        before = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
        ahead = (logits > own) | ((logits == own) & before)
        finite = torch.isfinite(logits).all(dim=1)
        ranks = torch.where(finite, ahead.sum(dim=1), logits.shape[1])
        places = torch.arange(len(targets)) if indices is None else indices
        return cls(targets, ranks, F.cross_entropy(logits, targets, reduction="none"), places)

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """All images of several batches in the order of their positions, on the CPU."""
        if not parts:
            none = torch.empty(0, dtype=torch.int64)
            return cls(none, none, none.float(), none)
        whole = [
            torch.cat([getattr(part, name) for part in parts]).cpu()
            for name in ("targets", "ranks", "losses", "indices")
        ]
        order = torch.argsort(whole[-1], stable=True)
        return cls(*(values[order] for values in whole))

    def top(self, k: int) -> float:
        """Percent of images whose right class is among the first `k`; 100 when there are no more than k classes."""
        return 100.0 * int((self.ranks < k).sum()) / len(self.ranks)

    def mean_loss(self) -> float:
        """Mean cross-entropy in nats, summed in double precision."""
        return float(self.losses.double().mean())

    def per_class(self, num_classes: int) -> tuple[list[int], list[int]]:
        """(hits, images) of each class, in index order."""
        hits = torch.bincount(self.targets[self.ranks == 0], minlength=num_classes)
        return hits.tolist(), torch.bincount(self.targets, minlength=num_classes).tolist()


def confusion_counts(targets: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """How many images of each class got each answer, (C, C) int64: row = right class, column = prediction."""
    cells = np.bincount(targets * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes)


def recalls(targets: np.ndarray, hits: np.ndarray, num_classes: int) -> np.ndarray:
    """Percent of each class's images that are right, (C,) float64; NaN for a class without images.

    Args:
        targets: Right classes, (N,) int64.
        hits: Whether each image is right, (N,) bool.
        num_classes: C.
    """
    counts = np.bincount(targets, minlength=num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0
        return np.asarray(100.0 * np.bincount(targets, hits, minlength=num_classes) / counts)


def balanced_accuracy(targets: np.ndarray, hits: np.ndarray, num_classes: int) -> float:
    """Mean over the classes that have images of their percentage right: each class weighs the same."""
    return float(np.nanmean(recalls(targets, hits, num_classes)))
