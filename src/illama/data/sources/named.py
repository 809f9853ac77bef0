"""Data sets by timm's names: torch/... (torchvision) and hfds/... (the Hugging Face `datasets` library)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import BrokenImage, as_seen, read_bytes, read_image
from illama.data.layout import Layout, needed_path
from illama.data.source import Source, number_classes
from illama.data.sources.splits import role_of
from illama.data.sources.walk import FoundFiles
from illama.errors import UserError
from illama.optional import import_timm

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig


class TorchvisionSource(Source):
    """A torchvision data set."""

    def __init__(
        self, dataset: Any, labels: np.ndarray, classes: tuple[str, ...], in_chans: int, description: str
    ) -> None:
        self._dataset = dataset
        self._files: Sequence[tuple[str, int]] | None = getattr(dataset, "samples", getattr(dataset, "imgs", None))
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = description

    def read(self, i: int) -> Image.Image:
        if self._files is not None:  # torchvision itself would leave the EXIF orientation out
            return read_image(self._files[i][0], self.in_chans, max_pixels=self.max_pixels)
        try:
            image, _ = self._dataset[i]
        except Exception as error:  # each data set reads in its own way
            raise BrokenImage(self.location(i), str(error)) from None
        return as_seen(image, self.in_chans)

    def encoded(self, i: int) -> bytes | None:
        return None if self._files is None else read_bytes(self._files[i][0])

    def location(self, i: int) -> str:
        return self._files[i][0] if self._files is not None else f"{type(self._dataset).__name__} row {i}"


def look_at_torchvision(data: DataConfig, found: FoundFiles | None) -> Layout:
    """torch/cifar10 and its like, from a folder where torchvision finds the files; nothing is downloaded."""
    needed_path(data)
    return TorchvisionLayout(data, "torchvision's", data.name, ("train", "validation"))


class TorchvisionLayout(Layout):
    """A torchvision data set; which splits it has, it does not tell."""

    def _choose(self, wanted: str, *, carved: bool) -> str | None:
        return (
            "validation" if wanted == "auto" else wanted if role_of(wanted) else super()._choose(wanted, carved=carved)
        )

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        return _open_torchvision(self.data.name, needed_path(self.data), split or "train", in_chans, classes)


def _open_torchvision(name: str, path: Path, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    """Open one split.

    Raises:
        UserError: Unknown name or split, or the files are not there.
    """
    import_timm()
    from timm.data import create_dataset

    try:
        dataset = create_dataset(name, root=str(path), split=split, download=False)
    except AssertionError as error:
        raise UserError(f"data.name {name}: {error}; allowed: torch/cifar10, torch/cifar100, ...") from None
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"{name} cannot be read from data.path {shown(path)}: {_first_line(error)}; put its files there"
        ) from None
    rows = getattr(dataset, "targets", None)
    if rows is None:
        rows = [row[1] for row in getattr(dataset, "samples", getattr(dataset, "imgs", []))]
    labels = np.asarray(rows, dtype=np.int64)
    labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST keeps the class in the first column
    if len(labels) != len(dataset):
        raise UserError(f"{name} has no list of labels, which random access needs; convert it to an image folder")
    # of ImageNet's names two occur twice; its WordNet ids are unique
    found = getattr(dataset, "wnids", None) or getattr(dataset, "classes", None)
    found = [str(entry) for entry in found] if found else [str(c) for c in range(int(labels.max()) + 1)]
    names, labels = number_classes(found, labels, classes, name)
    description = f"{name} in {path}, split {split}: {len(labels)} images, {len(names)} classes"
    return TorchvisionSource(dataset, labels, names, in_chans, description)


class HubSource(Source):
    """A map-style data set of the `datasets` library, through timm's reader."""

    def __init__(
        self, reader: Any, labels: np.ndarray, classes: tuple[str, ...], in_chans: int, description: str
    ) -> None:
        self._reader = reader
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = description

    def read(self, i: int) -> Image.Image:
        return read_image(self.encoded(i), self.in_chans, self.location(i), max_pixels=self.max_pixels)

    def encoded(self, i: int) -> bytes:
        cell = self._reader.dataset[i][self._reader.image_key]
        if not cell or not (cell.get("bytes") or cell.get("path")):
            raise BrokenImage(self.location(i), "the row has no image")
        content: bytes = cell.get("bytes") or read_bytes(cell["path"], self.location(i))
        return content

    def location(self, i: int) -> str:
        return f"{self.description.partition(':')[0]} row {i}"


def look_at_hub(data: DataConfig, found: FoundFiles | None) -> Layout:
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
        raise UserError(f"{data.name} cannot be opened: {shown(_first_line(error))}") from None
    return HubLayout(data, "the hub's", data.name, splits)


class HubLayout(Layout):
    """A data set of the `datasets` library."""

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        return _open_hub(self.data, split or "train", in_chans, classes)


def _open_hub(data: DataConfig, split: str, in_chans: int, classes: Sequence[str] | None) -> Source:
    """Open one split; `data.path` is the folder where `datasets` keeps what it prepares.

    Raises:
        UserError: There is no image or label column, or `datasets` cannot read it.
    """
    import_timm()
    import datasets
    from timm.data import create_dataset

    name, cache = data.name, data.path
    try:
        features = datasets.load_dataset(name.partition("/")[2], split=split, cache_dir=cache).features
        image_column, label_column = _columns(features, name)
        reader = create_dataset(name, root=cache, split=split, input_key=image_column, target_key=label_column).reader
    except UserError:
        raise
    except Exception as error:  # the library raises its own, requests' and file system errors alike
        raise UserError(f"{name} cannot be opened: {shown(_first_line(error))}") from None
    labels = np.asarray(reader.dataset[label_column][:], dtype=np.int64)
    found = list(reader.class_to_idx) or [str(c) for c in range(int(labels.max()) + 1)]
    names, labels = number_classes(found, labels, classes, f"{name}, split {split}")
    description = f"{name}, split {split}: {len(labels)} images, {len(names)} classes"
    return HubSource(reader, labels, names, in_chans, description)


def _columns(features: Any, where: str) -> tuple[str, str]:
    """Names of the image and the label column, by their types."""
    images = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    labels = ["label"] if "label" in features else labels
    if not images or not labels:
        raise UserError(f"{where} has no image or no class column; its columns: {', '.join(features)}")
    return images[0], labels[0]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
