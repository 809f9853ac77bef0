"""Parquet files in the Hugging Face image layout: train-00000-of-00003.parquet with an image and a label column."""

from __future__ import annotations

import json
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from illama.data.images import BrokenImage, read_bytes, read_image
from illama.data.source import Source, number_classes
from illama.data.splits import choose_split, split_in_name
from illama.errors import UserError

# Encoded images of a split up to this many bytes stay in memory; beyond, row groups are read when needed.
HELD_BYTES = 4 << 30
CACHED_ROW_GROUPS = 8


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError('parquet files need pyarrow; pip install "illama[data]"') from None
    return pyarrow


class _RowGroups:
    """The image column by row. Every process reads its own row groups; threads share them."""

    def __init__(self, files: Sequence[Path], column: str, cached: int) -> None:
        self.files = files
        self._column = column
        self._cached = cached
        self._groups: list[tuple[int, int]] = []
        self._ends: list[int] = []
        for number, file in enumerate(files):
            metadata = _pyarrow().parquet.read_metadata(file)
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                self._ends.append((self._ends[-1] if self._ends else 0) + metadata.row_group(group).num_rows)
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # spawned workers read anew
        return {**self.__dict__, "_held": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def hold_all(self) -> None:
        """Read all now, so that forked workers share the memory."""
        self._cached = len(self._groups)
        for group in range(len(self._groups)):
            self._group(group)

    def _group(self, position: int) -> Any:
        with self._lock:
            if position not in self._held:
                number, group = self._groups[position]
                # threads of pyarrow's pool do not survive a fork
                with _pyarrow().parquet.ParquetFile(self.files[number]) as file:
                    table = file.read_row_group(group, columns=[self._column], use_threads=False)
                self._held[position] = table.column(self._column).combine_chunks()
                while len(self._held) > self._cached:
                    self._held.popitem(last=False)
            self._held.move_to_end(position)
            return self._held[position]

    def place(self, i: int) -> tuple[Path, int]:
        """File, and row in that file."""
        number = self._groups[bisect_right(self._ends, i)][0]
        first = next(p for p, (n, _) in enumerate(self._groups) if n == number)
        return self.files[number], i - (self._ends[first - 1] if first else 0)

    def value(self, i: int) -> Any:
        """The cell of image `i`: {"bytes", "path"} or bytes."""
        position = bisect_right(self._ends, i)
        return self._group(position)[i - (self._ends[position - 1] if position else 0)].as_py()


class ParquetSource(Source):
    """Images from the rows of parquet files."""

    def __init__(
        self, rows: _RowGroups, labels: np.ndarray, classes: tuple[str, ...], in_chans: int, description: str
    ) -> None:
        self._rows = rows
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = description

    def read(self, i: int) -> Image.Image:
        content = self.encoded(i)
        try:
            return read_image(content, self.in_chans, "")
        except BrokenImage as broken:  # the place is looked up only when it is needed
            raise BrokenImage(self.location(i), broken.why) from None

    def encoded(self, i: int) -> bytes:
        cell = self._rows.value(i)
        content: bytes | None = cell.get("bytes") if isinstance(cell, dict) else cell
        if content is None and isinstance(cell, dict) and cell.get("path"):
            return read_bytes(self._rows.place(i)[0].parent / cell["path"])
        if content is None:
            raise BrokenImage(self.location(i), "the row has no image")
        return content

    def location(self, i: int) -> str:
        file, row = self._rows.place(i)
        return f"{file} row {row}"


def open_parquet(path: Path, split: str, in_chans: int = 3, classes: Sequence[str] | None = None) -> Source:
    """Open one split of a folder with SPLIT-*.parquet files (there or in data/), or of a single file.

    Raises:
        UserError: No such split, no image or label column, or labels that are no class numbers.
    """
    by_split: dict[str, list[Path]] = {}
    for file in _files(path):
        by_split.setdefault(split_in_name(file.name), []).append(file)
    split = choose_split(split, sorted(by_split), str(path))
    files = by_split[split]
    pyarrow = _pyarrow()
    try:
        schema = pyarrow.parquet.read_schema(files[0])
        features = _features(schema)
        image_column, label_column = _columns(schema, features, str(files[0]))
        labels = pyarrow.parquet.read_table(files, columns=[label_column], use_threads=False).column(label_column)
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise UserError(f"{path}: {split} cannot be read as parquet: {str(error).splitlines()[0]}") from None
    found, numbers = _numbered(labels, features.get(label_column, {}), f"{path}, column {label_column}")
    names, numbers = number_classes(found, numbers, classes, f"{path}, split {split}")
    rows = _RowGroups(files, image_column, CACHED_ROW_GROUPS)
    size = sum(file.stat().st_size for file in files)
    description = f"parquet {path}, split {split}: {len(numbers)} images, {len(names)} classes"
    if size <= HELD_BYTES:
        rows.hold_all()
    else:
        description += f"; {size / 2**30:.1f} GiB stay on disk, and a shuffled read takes a whole row group per image"
    return ParquetSource(rows, numbers, names, in_chans, description)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet"))
    if not files:
        raise UserError(f"{path} has no *.parquet files")
    return files


def _features(schema: Any) -> dict[str, Any]:
    """Columns as the `huggingface` entry of the schema describes them; empty where there is none."""
    entry = (schema.metadata or {}).get(b"huggingface")
    if entry is None:
        return {}
    features: dict[str, Any] = json.loads(entry).get("info", {}).get("features", {})
    return features


def _columns(schema: Any, features: dict[str, Any], where: str) -> tuple[str, str]:
    """Names of the image and the label column."""
    images = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    images += [name for name in ("image", "img") if name in schema.names]
    labels = [name for name in ("label", "labels") if name in schema.names]
    labels += [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    labels += [name for name in ("fine_label", "class", "target") if name in schema.names]
    for what, found in (("image (image, img)", images), ("label (label, labels, class, target)", labels)):
        if not found:
            raise UserError(f"{where} has no {what} column; its columns: {', '.join(schema.names)}")
    return images[0], labels[0]


def _numbered(labels: Any, feature: dict[str, Any], where: str) -> tuple[list[str], np.ndarray]:
    """Class names and class numbers of a label column of numbers or of names."""
    if labels.null_count:
        raise UserError(f"{where}: {labels.null_count} rows have no label")
    values = labels.to_numpy()
    names = feature.get("names")
    if values.dtype == object:
        found, numbers = np.unique(values.astype(str), return_inverse=True)
        return found.tolist(), numbers
    if not np.issubdtype(values.dtype, np.integer):
        raise UserError(f"{where}: labels are {values.dtype}, expected whole numbers or names")
    if isinstance(names, dict):  # older files number the names explicitly
        names = [names[key] for key in sorted(names, key=int)]
    return names or [str(c) for c in range(int(values.max(initial=-1)) + 1)], values
