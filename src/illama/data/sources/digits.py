"""The embedded data set: scikit-learn's handwritten digits, 1797 real scans of 8 x 8 pixels."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from illama.data.decode.images import as_seen
from illama.data.layout import Layout
from illama.data.source import Source, number_classes
from illama.data.sources.splits import stratified_choice
from illama.data.sources.walk import FoundFiles

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

# The held-out split is part of the data set: the same 360 images for every run, whatever its seed.
HELD_OUT = 360
HELD_OUT_SEED = 0


class DigitsSource(Source):
    """Images in memory, 8-bit grey."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        rows: np.ndarray,
        classes: tuple[str, ...],
        split: str,
        in_chans: int,
    ) -> None:
        self._images = images
        self._rows = rows
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = (
            f"scikit-learn's handwritten digits, split {split}: {len(labels)} images, {len(classes)} classes"
        )

    def read(self, i: int) -> Image.Image:
        return as_seen(Image.fromarray(self._images[i]), self.in_chans)

    def location(self, i: int) -> str:
        return f"digits row {self._rows[i]}"


def look_at_digits(data: DataConfig, found: FoundFiles | None) -> DigitsLayout:
    """The layout of the digits, which is always the same."""
    return DigitsLayout(data, "embedded", "digits", ("train", "test"))


class DigitsLayout(Layout):
    """Split "train" (1437 images) and "test" (360 images, stratified) of the digits."""

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> DigitsSource:
        return _open(split or "test", in_chans, classes)


def _open(split: str, in_chans: int, classes: Sequence[str] | None) -> DigitsSource:
    images, digits = _load()
    held = stratified_choice(digits, HELD_OUT, HELD_OUT_SEED)
    rows = held if split == "test" else np.setdiff1d(np.arange(len(digits)), held)
    grey = np.rint(images[rows] * (255 / 16)).astype(np.uint8)  # stored as 0 to 16
    names, labels = number_classes([str(d) for d in range(10)], digits[rows], classes, "digits")
    return DigitsSource(grey, labels, rows, names, split, in_chans)


@functools.cache
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8), 0 to 16, and what they show (N,): a file of text, of which one reading is enough."""
    from sklearn.datasets import load_digits  # a second of import that other data sets need not pay

    digits = load_digits()
    return digits.images, digits.target
