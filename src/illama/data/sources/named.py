"""Data sets by name: the embedded digits, torch/... (torchvision), hfds/... (the Hugging Face `datasets` library)."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import BrokenImage, as_seen, read_bytes, read_image
from illama.data.layout import Layout, needed_path
from illama.data.source import Source
from illama.data.sources.splits import role_of, stratified_choice
from illama.data.sources.table import first_line
from illama.data.sources.walk import Listing
from illama.errors import UserError
from illama.optional import import_timm

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

# Of scikit-learn's handwritten digits, 1797 real scans of 8 x 8 pixels. The held-out split is part of the data set: the
# same 360 images for every run, whatever its seed.
HELD_OUT = 360
HELD_OUT_SEED = 0


@dataclass(eq=False, repr=False, kw_only=True)
class DigitsSource(Source):
    """Digits in memory, 8-bit grey.

    Attributes:
        images: (n, 8, 8) uint8.
        rows: Their numbers in the whole data set, (n,).
    """

    images: np.ndarray
    rows: np.ndarray

    def read(self, i: int) -> Image.Image:
        return as_seen(Image.fromarray(self.images[i]), self.in_chans)

    def location(self, i: int) -> str:
        return f"digits row {self.rows[i]}"


def look_at_digits(data: DataConfig, listing: Listing | None) -> Layout:
    """The layout of the digits, which is always the same."""
    return DigitsLayout(data, "embedded", "digits", ("train", "test"))


class DigitsLayout(Layout):
    """Split "train" (1437 images) and "test" (360 images, stratified) of the digits."""

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> DigitsSource:
        images, digits = _digits()
        split = split or "test"
        held = stratified_choice(digits, HELD_OUT, HELD_OUT_SEED)
        rows = held if split == "test" else np.setdiff1d(np.arange(len(digits)), held)
        return DigitsSource(
            images=np.rint(images[rows] * (255 / 16)).astype(np.uint8),  # stored as 0 to 16
            rows=rows,
            classes=tuple(str(digit) for digit in range(10)),
            labels=digits[rows],
            in_chans=in_chans,
            description=f"scikit-learn's handwritten digits, split {split}",
        )


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 8, 8), 0 to 16, and what they show (N,), as `sklearn.datasets.load_digits` gives them.

    The file is read past scikit-learn, whose import takes seconds of every start.
    """
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    table = np.loadtxt(str(file), delimiter=",")
    return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(int)


@dataclass(eq=False, repr=False, kw_only=True)
class TorchvisionSource(Source):
    """A torchvision data set."""

    dataset: Any

    def __post_init__(self) -> None:
        self._files: Sequence[tuple[str, int]] | None = _files_of(self.dataset)

    def read(self, i: int) -> Image.Image:
        if self._files is not None:  # torchvision itself would leave the EXIF orientation out
            return read_image(self._files[i][0], self.in_chans, max_pixels=self.max_pixels)
        try:
            image, _ = self.dataset[i]
        except Exception as error:  # each data set reads in its own way
            raise BrokenImage(self.location(i), str(error)) from None
        return as_seen(image, self.in_chans)

    def encoded(self, i: int) -> bytes | None:
        return None if self._files is None else read_bytes(self._files[i][0])

    def location(self, i: int) -> str:
        return self._files[i][0] if self._files is not None else f"{type(self.dataset).__name__} row {i}"


def look_at_torchvision(data: DataConfig, listing: Listing | None) -> Layout:
    """torch/cifar10 and its like, from a folder where torchvision finds the files; nothing is downloaded."""
    needed_path(data)
    return TorchvisionLayout(data, "torchvision's", data.name, ("train", "validation"))


class TorchvisionLayout(Layout):
    """A torchvision data set; which splits it has, it does not tell."""

    def _choose(self, wanted: str, *, carved: bool) -> str | None:
        if wanted == "auto":
            return "validation"
        return wanted if role_of(wanted) else super()._choose(wanted, carved=carved)

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> TorchvisionSource:
        """Open one split.

        Raises:
            UserError: Unknown name or split, or the files are not there.
        """
        import_timm()
        from timm.data import create_dataset

        name, path, split = self.data.name, needed_path(self.data), split or "train"
        try:
            dataset = create_dataset(name, root=str(path), split=split, download=False)
        except AssertionError as error:
            raise UserError(f"data.name {name}: {error}; allowed: torch/cifar10, torch/cifar100, ...") from None
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{name} cannot be read from data.path {shown(path)}: {first_line(error)}; put its files there"
            ) from None
        targets = getattr(dataset, "targets", None)
        if targets is None:
            targets = [target for _, target in _files_of(dataset) or ()]
        labels = np.asarray(targets, dtype=np.int64)
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST keeps the class in the first column
        if len(labels) != len(dataset):
            raise UserError(f"{name} has no list of labels, which random access needs; convert it to an image folder")
        # of ImageNet's names two occur twice; its WordNet ids are unique
        names = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)
        return TorchvisionSource(
            dataset=dataset,
            classes=tuple(map(str, names or range(int(labels.max()) + 1))),
            labels=labels,
            in_chans=in_chans,
            description=f"{name} in {path}, split {split}",
        )


def _files_of(dataset: Any) -> Sequence[tuple[str, int]] | None:
    """(file, label) of each image, where a torchvision data set reads files."""
    files: Sequence[tuple[str, int]] | None = getattr(dataset, "samples", getattr(dataset, "imgs", None))
    return files


@dataclass(eq=False, repr=False, kw_only=True)
class HubSource(Source):
    """A map-style data set of the `datasets` library, through timm's reader."""

    reader: Any

    def read(self, i: int) -> Image.Image:
        return read_image(self.encoded(i), self.in_chans, self.location(i), max_pixels=self.max_pixels)

    def encoded(self, i: int) -> bytes:
        cell = self.reader.dataset[i][self.reader.image_key]
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise BrokenImage(self.location(i), "the row has no image")
        content: bytes = cell.get("bytes") or read_bytes(cell["path"], self.location(i))
        return content

    def location(self, i: int) -> str:
        return f"{self.description.partition(':')[0]} row {i}"


def look_at_hub(data: DataConfig, listing: Listing | None) -> Layout:
    """hfds/OWNER/NAME (or hfds/ and a local folder); `datasets` may download it.

    Raises:
        UserError: `datasets` is missing, or finds no such set.
    """
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f'data.name {data.name} needs the datasets library; pip install "illama[hub-data]"')
    import datasets

    try:
        splits = datasets.get_dataset_split_names(data.name.partition("/")[2])
    except Exception as error:  # the library raises its own, requests' and file system errors alike
        raise UserError(f"{data.name} cannot be opened: {shown(first_line(error))}") from None
    return HubLayout(data, "the hub's", data.name, splits)


class HubLayout(Layout):
    """A data set of the `datasets` library; `data.path` is the folder where it keeps what it prepares."""

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> HubSource:
        """Open one split.

        Raises:
            UserError: There is no image or label column, or `datasets` cannot read it.
        """
        import_timm()
        import datasets
        from timm.data import create_dataset

        name, cache, split = self.data.name, self.data.path, split or "train"
        try:
            features = datasets.load_dataset(name.partition("/")[2], split=split, cache_dir=cache).features
            image, label = _columns(features, name)
            reader = create_dataset(name, root=cache, split=split, input_key=image, target_key=label).reader
        except UserError:
            raise
        except Exception as error:  # the library raises its own, requests' and file system errors alike
            raise UserError(f"{name} cannot be opened: {shown(first_line(error))}") from None
        labels = np.asarray(reader.dataset[label][:], dtype=np.int64)
        return HubSource(
            reader=reader,
            classes=tuple(reader.class_to_idx) or tuple(map(str, range(int(labels.max()) + 1))),
            labels=labels,
            in_chans=in_chans,
            description=f"{name}, split {split}",
        )


def _columns(features: Any, where: str) -> tuple[str, str]:
    """Names of the image and the label column, by their types."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    labels = ["label"] if "label" in features else labels
    if not images or not labels:
        raise UserError(f"{where} has no image or no class column; its columns: {', '.join(features)}")
    return images[0], labels[0]
