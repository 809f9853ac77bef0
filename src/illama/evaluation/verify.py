"""Do published weights reach their published accuracy here?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from illama.checkpoint.format import Meta
from illama.errors import UserError
from illama.evaluation.classify import EvalResult, evaluate_subject
from illama.evaluation.statistics import wilson
from illama.evaluation.subject import open_subject
from illama.weights.load import load_weights, locate
from illama.weights.published import PUBLISHED, PublishedWeights, find_published

VALIDATION_IMAGES = 50_000
IMAGES_PER_CLASS = 50
# Points. Not the spread of a sample, the images are the same: JPEG decoders and Pillow's resizing have changed by
# single levels since, and float32 sums are added in another order on other hardware. Together they move some tens of
# the 50,000 decisions; 0.1 points are 50.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Verification:
    """A measured accuracy beside the published one.

    Attributes:
        published: The row of the published weights.
        result: What the evaluation found.
        low, high: Wilson's 95 % interval of the accuracy, percent, as if the images were drawn at random.
        complete: Whether these were ImageNet's 50,000 validation images, 50 of each class, all readable: else it is a
            measurement and no verification.
    """

    published: PublishedWeights
    result: EvalResult
    low: float
    high: float
    complete: bool

    @property
    def difference(self) -> float:
        """Measured minus published, in points."""
        return self.result.top1 - self.published.top1

    @property
    def published_range(self) -> tuple[float, float]:
        """Least and most of what the paper prints and the authors' log gives: the file's epoch is not stated."""
        values = self.published.top1, self.published.top1_log, self.published.best_log
        return min(values), max(values)

    @property
    def agrees(self) -> bool:
        """Whether the measured accuracy lies in the published range, or next to it within the tolerance."""
        low, high = self.published_range
        return round(max(low - self.result.top1, self.result.top1 - high), 6) <= TOLERANCE

    @property
    def in_interval(self) -> bool:
        """Whether the published accuracy lies in the interval."""
        return self.low <= self.published.top1 <= self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        row = self.published
        return {
            "weights": row.name,
            "file": row.file,
            "verified": self.complete and self.agrees,
            "complete": self.complete,
            "top1": self.result.top1,
            "published_top1": row.top1,
            "log_top1": row.top1_log,
            "log_best_top1": row.best_log,
            "difference": self.difference,
            "tolerance": TOLERANCE,
            "interval_95": [self.low, self.high],
            "published_in_interval": self.in_interval,
            "count": self.result.count,
            "skipped": self.result.skipped,
            "data": self.result.data,
        }


def verify(
    checkpoint: Path | str,
    *,
    data: str,
    split: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Verification:
    """Measure published weights and compare with the paper.

    Args:
        checkpoint: A published name, a published file, or a .safetensors file that was converted from one, unchanged.
        data: ImageNet: a folder, a parquet file, or a data set's name.
        split: Which split; the evaluation split when None.
        batch_size: Images at a time.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        progress: Draw a progress bar on stderr.

    Raises:
        UserError: The weights are no published ones, or checkpoint, data or device cannot be used.
    """
    place = locate(checkpoint)
    if place.published is None:  # before the data is opened: it fits no other network
        published_row(load_weights(place.file).meta, checkpoint)
    subject = open_subject(place.file, data=data, split=split, batch_size=batch_size, device=device)
    row = published_row(subject.meta, checkpoint)
    return judge(row, evaluate_subject(subject, progress=progress))


def published_row(meta: Meta, checkpoint: Path | str) -> PublishedWeights:
    """The published weights that a checkpoint is.

    Raises:
        UserError: It is none of them, or changed since.
    """
    row = find_published(meta.source)
    if row is None:
        raise UserError(
            f"{checkpoint} is none of the published weights, so there is nothing to compare with; "
            f"published: {', '.join(PUBLISHED)}; illama eval measures any weights"
        )
    return row


def judge(published: PublishedWeights, result: EvalResult) -> Verification:
    """The comparison of an evaluation with the published value."""
    low, high = wilson(sum(result.class_hits), result.count).in_percent()
    counts = result.class_counts
    complete = (
        result.count == VALIDATION_IMAGES
        and not result.skipped
        and len(counts) * IMAGES_PER_CLASS == VALIDATION_IMAGES
        and all(count == IMAGES_PER_CLASS for count in counts)
    )
    return Verification(published, result, low, high, complete)
