"""Image sets by position: what every kind of data set has to offer, and how its classes are numbered."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import MAX_PIXELS, BrokenImage
from illama.data.decode.lazy_image import DecodedPicture, Picture, open_picture
from illama.data.sources.splits import composed
from illama.errors import UserError
from illama.registry import closest

# A label above this is a mistake, not a class: names and counts of all classes are held in memory.
MOST_CLASSES = 1_000_000


class UnknownClassError(UserError):
    """Images belong to a class that the model was not trained on."""


@dataclass(eq=False, repr=False, kw_only=True)
class Source(ABC):
    """One split of an image set, with random access. Reading is safe from several threads and processes.

    Attributes:
        classes: Class names; a label is a position in it.
        labels: Class of each image, (n,) int64.
        description: What this is, for people: kind, place, split, number of images.
        in_chans: Channels of the images, 1 or 3.
        max_pixels: A larger image is not decoded.
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    description: str
    in_chans: int = 3
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Image `i` as a person sees it, "RGB" or "L".

        Raises:
            BrokenImage: It cannot be read completely.
        """

    def encoded(self, i: int) -> bytes | None:
        """The image file as it is stored; None where a source keeps pixels, or leaves reading to another library.

        Raises:
            BrokenImage: There is none, or it cannot be fetched.
        """
        return None

    def picture(self, i: int) -> Picture:
        """Image `i` for those who need a part of it: the same pixels as `read`, decoded when they are asked for.

        Raises:
            BrokenImage: It cannot be read completely; the picture may say so later.
        """
        content = self.encoded(i)
        if content is None:
            return DecodedPicture(self.read(i))
        try:
            return open_picture(content, self.in_chans, self.max_pixels)
        except BrokenImage as broken:  # the place is looked up only when it is needed
            raise BrokenImage(self.location(i), broken.why) from None

    def target(self, i: int) -> torch.Tensor:
        """What is to be said of image `i`: its class, 0-d int64, where a source has nothing else.

        Raises:
            BrokenImage: It cannot be read; the image counts as unreadable then.
        """
        return torch.tensor(self.labels[i], dtype=torch.int64)

    def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Get ready to be read by several processes, which shall share what is in memory. Once, before they start."""

    def head(self, i: int, length: int) -> tuple[int, bytes]:
        """Size of image `i` as it is stored (of its pixels where a source keeps no files), and its first bytes.

        Raises:
            BrokenImage: As `encoded` and `read`.
        """
        content = self.encoded(i)
        content = self.read(i).tobytes() if content is None else content
        return len(content), content[:length]

    @abstractmethod
    def location(self, i: int) -> str:
        """Where image `i` comes from: a path, or a file and a row. It may hold any letters: see `text.shown`."""


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
        self.in_chans, self.max_pixels = source.in_chans, source.max_pixels
        self.description = f"{source.description}; {why}"

    def read(self, i: int) -> Image.Image:
        return self._source.read(int(self._chosen[i]))

    def encoded(self, i: int) -> bytes | None:
        return self._source.encoded(int(self._chosen[i]))

    def picture(self, i: int) -> Picture:
        return self._source.picture(int(self._chosen[i]))

    def target(self, i: int) -> torch.Tensor:
        return self._source.target(int(self._chosen[i]))

    def prepare(self) -> None:
        self._source.prepare()

    def head(self, i: int, length: int) -> tuple[int, bytes]:
        return self._source.head(int(self._chosen[i]), length)

    def location(self, i: int) -> str:
        return self._source.location(int(self._chosen[i]))


def number_classes(
    names: Sequence[str], labels: np.ndarray, classes: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...], np.ndarray]:
    """Classes and labels in the numbering of the training split.

    Args:
        names: Class names of this split in its own numbering.
        labels: Own class numbers, (n,).
        classes: Numbering of the training split; None when this is the training split.
        where: The data set, for messages.

    Returns:
        (class names, labels as int64).

    Raises:
        UserError: Two classes share a name, or a label is no class number.
        UnknownClassError: Images belong to an unknown class.
    """
    names = tuple(names)
    labels = np.asarray(labels, dtype=np.int64)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{where} has two classes named {shown(twice)!r}; class names must differ")
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        bad = int(labels.min() if labels.min() < 0 else labels.max())
        raise UserError(
            f"{where} has the label {bad}, but its {len(names)} classes are numbered 0 to {len(names) - 1}; "
            "images without a label cannot be used"
        )
    if classes is None or tuple(classes) == names:
        return names, labels
    number = {composed(name): i for i, name in enumerate(classes)}
    unknown = [own for own in np.unique(labels) if composed(names[own]) not in number]
    if unknown:
        first, count = names[unknown[0]], int((labels == unknown[0]).sum())
        others = f" and of {len(unknown) - 1} other classes" if len(unknown) > 1 else ""
        raise UnknownClassError(
            f"{where} has {count} images of class {shown(first)!r}{others}, which the model was not trained on "
            f"({len(number)} classes; {closest(first, number)})"
        )
    to_training = np.array([number.get(composed(name), -1) for name in names], dtype=np.int64)
    return tuple(classes), to_training[labels]
