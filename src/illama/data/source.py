"""Image sets by position: what every kind of data set has to offer, and how its classes are numbered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from PIL import Image

from illama.errors import UserError
from illama.registry import closest


class Source(ABC):
    """One split of an image set, with random access. Reading is safe from several threads and processes.

    Attributes:
        classes: Class names; a label is a position in it.
        labels: Class of each image, (n,) int64.
        description: What this is, for people: kind, place, split, number of images.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    description: str

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Image `i` as a person sees it, "RGB" or "L".

        Raises:
            BrokenImage: It cannot be read completely.
        """

    @abstractmethod
    def location(self, i: int) -> str:
        """Where image `i` comes from: a path, or a file and a row."""


class SubsetSource(Source):
    """Some images of another source.

    Args:
        source: Where the images are.
        chosen: Their positions there, (n,) integers.
        why: What was chosen, appended to the description.
    """

    def __init__(self, source: Source, chosen: np.ndarray, why: str) -> None:
        self._source = source
        self._chosen = chosen
        self.classes = source.classes
        self.labels = source.labels[chosen]
        self.description = f"{source.description}; {why}"

    def read(self, i: int) -> Image.Image:
        return self._source.read(int(self._chosen[i]))

    def location(self, i: int) -> str:
        return self._source.location(int(self._chosen[i]))


def number_classes(
    found: Sequence[str], labels: np.ndarray, classes: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and labels in the numbering of the training split.

    Args:
        found: Class names of this split in its own numbering.
        labels: Own class numbers, (n,).
        classes: Numbering of the training split; None when this is the training split.
        where: The data set, for messages.

    Returns:
        (class names, labels as int64).

    Raises:
        UserError: Two classes share a name, a label is no class number, or images belong to an unknown class.
    """
    names = tuple(found)
    labels = np.asarray(labels, dtype=np.int64)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where} has two classes named {twice!r}; class names must differ")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        bad = int(labels.min() if labels.min() < 0 else labels.max())
        raise UserError(
            f"{where} has the label {bad}, but its {len(names)} classes are numbered 0 to {len(names) - 1}; "
            "images without a label cannot be used"
        )
    if classes is None or tuple(classes) == names:
        return names, labels
    number = {name: i for i, name in enumerate(classes)}
    for own in np.unique(labels):
        if names[own] not in number:
            count = int((labels == own).sum())
            raise UserError(
                f"{where} has {count} images of class {names[own]!r}, which the model was not trained on "
                f"({len(number)} classes; {closest(names[own], number)})"
            )
    to_training = np.array([number.get(name, -1) for name in names], dtype=np.int64)
    return tuple(classes), to_training[labels]
