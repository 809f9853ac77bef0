"""Parquet files in the Hugging Face image layout: train-00000-of-00003.parquet with an image and a label column.

The split stands in the file's name or in that of a folder above it, as `datasets` and the hub's converter write it:
data/train-00000-of-1.parquet, plain_text/train-00000-of-1.parquet, default/train/0000.parquet. A cell holds a file's
bytes, text that stands for one (a path, base64, a data URL), or pixels.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from illama.console.text import parse_json, shown
from illama.data.decode.images import BrokenImage, as_seen, read_bytes, read_image
from illama.data.layout import Layout, needed_folder, needed_path
from illama.data.source import MOST_CLASSES, Source
from illama.data.sources.formats import looks_like_picture, pointer_hint
from illama.data.sources.splits import (
    composed,
    few,
    is_split_column,
    is_split_folder,
    split_column,
    split_in_name,
    split_of_path,
    split_order,
    whole_or_splits,
)
from illama.data.sources.table import first_line, import_pyarrow, reading_parquet, text_of
from illama.data.sources.walk import NO_PICTURES, Listing, PassedOver, Reason
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig


# Encoded images of a split up to this many bytes stay in memory; beyond, row groups are read when needed.
HELD_BYTES = 4 << 30
CACHED_ROW_GROUPS = 8
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(?P<kind>[^,]*),(?P<content>.*)", re.DOTALL)
_URL_SAFE = str.maketrans("-_", "+/")  # a second alphabet of base64
_CHANNELS = (1, 3, 4)


def look_at_parquet(data: DataConfig, listing: Listing | None) -> Layout:
    """The layout of a folder of parquet files, or of a single one; a table of file names is a manifest.

    Raises:
        UserError: There are none, or several sets of them.
    """
    path = needed_path(data)
    if path.is_file():
        by_split, passed_over = _by_split([path.name]), None
        root = path.parent
    else:
        listing = needed_folder(data, listing, "of parquet files")
        root, files = path, _one_set(listing)
        by_split = _by_split(files)
        passed_over = PassedOver(dict(listing.passed_over.reasons))
        kept = passed_over.reasons.get(NO_PICTURES)
        if kept is not None:
            passed_over.reasons[NO_PICTURES] = Reason(kept.count - len(files), kept.examples)
        if listing.pictures:
            passed_over.add("pictures beside the parquet files", listing.pictures[0], len(listing.pictures))
    paths = {split: [root / file for file in files] for split, files in by_split.items()}
    schema = _schema(next(iter(paths.values()))[0])
    if path.is_file():
        from illama.data.sources.manifest import is_manifest, look_at_manifest

        images = _image_columns(schema, _features(schema), data.image_column)
        if is_manifest(schema.names, data) and not (images and _is_embedded(path, images[0])):
            return look_at_manifest(data, None)
    return ParquetLayout(data, path, whole_or_splits(paths, data.train_split, data.eval_split), passed_over)


class ParquetLayout(Layout):
    """Parquet files by split; "" for those that belong to none."""

    def __init__(
        self, data: DataConfig, path: Path, files: dict[str, list[Path]], passed_over: PassedOver | None
    ) -> None:
        self._files, self._rows_of = files, None if list(files) != [""] else _split_rows(files[""], data, shown(path))
        splits = list(self._rows_of[1]) if self._rows_of else [split for split in files if split]
        notes = [f"column {shown(self._rows_of[0])} is the split"] if self._rows_of else []
        super().__init__(data, "parquet", shown(path), splits, passed_over, notes)
        for own in files.values():
            self.note_missing(own)
        self.how_to_split = "name the files for splits (train.parquet, val.parquet)"

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        source = super().read(split, in_chans, classes)
        assert isinstance(source, ParquetSource)
        if not source.held:
            source.description += (
                f"; {source.rows.bytes / 2**30:.1f} GiB stay on disk, and a shuffled read takes a whole row group per "
                "image"
            )
        return source

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> ParquetSource:
        files, pyarrow = self._files["" if self._rows_of else split or ""], import_pyarrow()
        what = self.name_of(split)
        schema = _schema(files[0])
        features = _features(schema)
        image_column, label_column = self._columns(schema, features, files[0])
        _demand_same(files, schema, features, image_column, label_column)
        rows = RowGroups(files, image_column)
        chosen = None if split is None or not self._rows_of else self._rows_of[1][split]
        with reading_parquet(what):
            labels = pyarrow.chunked_array(
                [chunk for file in files for chunk in _column(file, label_column).chunks],
                schema.field(label_column).type,
            )
            labels = labels if chosen is None else labels.take(chosen)
        if not len(labels):
            raise UserError(f"{what}: it has no rows; give the files that hold the images")
        if len(labels) != len(rows if chosen is None else chosen):
            raise UserError(f"{what}: {len(labels)} labels for {len(rows)} rows; the file is damaged, fetch it again")
        feature = features.get(label_column, {})
        names, numbers = _numbered(labels, feature, f"{self.where}, column {shown(label_column)}")
        if feature.get("names") is None and classes is None:
            self._note_absent(names, numbers)
        return ParquetSource(
            rows=rows,
            shape=_shape(schema, features, image_column),
            held=rows.bytes <= HELD_BYTES,
            chosen=chosen,
            classes=tuple(names),
            labels=numbers,
            in_chans=in_chans,
            description=f"parquet {what}",
        )

    def _columns(self, schema: Any, features: dict[str, Any], file: Path) -> tuple[str, str]:
        """Names of the image and the label column."""
        images = _image_columns(schema, features, self.data.image_column)
        labels = _label_columns(schema, features, self.data.label_column)
        for what, key, columns in (
            ("image (image, img)", "image_column", images),
            ("label (label, labels, class, target)", "label_column", labels),
        ):
            if not columns:
                asked = getattr(self.data, key)
                raise UserError(
                    f"{shown(file)} has no {what} column{'' if asked is None else f' {asked!r}'}; its columns: "
                    f"{', '.join(map(shown, schema.names))}; name it with data.{key}=..."
                )
            if len(set(columns)) > 1:
                others = ", ".join(dict.fromkeys(map(shown, columns[1:])))
                self.note(f"column {shown(columns[0])} is taken; there are also {others} (data.{key}=...)")
        return images[0], labels[0]

    def _note_absent(self, names: list[str], numbers: np.ndarray) -> None:
        present = np.bincount(numbers[numbers >= 0], minlength=len(names))
        absent = [names[c] for c in np.flatnonzero(present[: len(names)] == 0)]
        if absent:
            verb = "never occurs" if len(absent) == 1 else "never occur"
            plural = "class" if len(absent) == 1 else "classes"
            self.note(f"the labels are numbers without names, and {plural} {few(absent)} {verb}")


def _one_set(listing: Listing) -> list[str]:
    """The files that belong together: those in the folder itself, in data/, or in the one folder that has some.

    Raises:
        UserError: There are none, or several folders have files of a split.
    """
    files = listing.holding(".parquet")
    if not files:
        raise UserError(f"{shown(listing.root)} has no *.parquet files")
    sets: dict[str, list[str]] = {}
    for file in files:
        sets.setdefault(_set_of(file), []).append(file)
    named = [name for name, own in sets.items() if any(split_of_path(file) for file in own)]
    if len(sets) > 1 and len(named) == 1:  # a preview beside data/train-00000-of-00001.parquet
        return sets[named[0]]
    for name in ("", "data"):
        if name in sets and not named:
            return sets[name]
    if len(sets) > 1:
        raise UserError(
            f"{shown(listing.root)} has several sets of parquet files ({few([name or '.' for name in sets])}); give "
            f"one of them: data.path={shown(listing.root)}/{shown(next(name for name in sets if name))}"
        )
    return files


def _set_of(file: str) -> str:
    """The folder of the set that a file belongs to: the one above its split's."""
    folders = file.split("/")[:-1]
    while folders and is_split_folder(folders[-1]):
        folders.pop()
    return "/".join(folders)


def _by_split(files: Sequence[str]) -> dict[str, list[str]]:
    """Files by split, "" where neither their names nor their folders tell one."""
    by_split: dict[str, list[str]] = {}
    for file in files:
        own = split_in_name(file.rpartition("/")[2])
        unnamed = re.fullmatch(r"(part|data|chunk|shard|file|table)?[-_.]?\d*(-of-\d+)?", own) is not None
        by_split.setdefault(split_of_path(file) or ("" if unnamed else own), []).append(file)
    return {split: by_split[split] for split in split_order(by_split)}


def _split_rows(files: Sequence[Path], data: DataConfig, where: str) -> tuple[str, dict[str, np.ndarray]] | None:
    """The column that tells the splits of files whose names tell none, and the rows of each; None without."""
    names = [name for name in _schema(files[0]).names if is_split_column(name)]
    if not names:
        return None
    for file in files[1:]:
        lacking = [name for name in names if name not in _schema(file).names]
        if lacking:
            raise UserError(f"{shown(file)} has no column {shown(lacking[0])}, and {shown(files[0])} has")
    with reading_parquet(where):
        cells = {
            name: [text_of(value) for file in files for value in _column(file, name).to_pylist()] for name in names
        }
    column = split_column(cells, (data.train_split, data.eval_split), where)
    if column is None:
        return None
    own = cells[column[0]]
    if None in own:
        raise UserError(f"{where}, row {own.index(None) + 1}, has no split (column {shown(column[0])})")
    splits = np.array([column[1](str(cell)) for cell in own], dtype=object)
    return column[0], {split: np.flatnonzero(splits == split) for split in sorted(set(splits))}


def _column(file: Path, name: str) -> Any:
    """A column of one file; not of several together, whose types need not be the same."""
    with import_pyarrow().parquet.ParquetFile(file) as opened:
        return opened.read(columns=[name], use_threads=False).column(name)


def _is_embedded(file: Path, column: str) -> bool:
    """Whether a column holds pictures, and not the names of files."""
    pyarrow = import_pyarrow()
    kind = _schema(file).field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(
        is_text(kind)
        for is_text in (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    ):
        return True
    with reading_parquet(shown(file)), pyarrow.parquet.ParquetFile(file) as opened:
        rows = next(opened.iter_batches(batch_size=1, columns=[column], use_threads=False), None)
        return rows is not None and len(rows) > 0 and is_picture_text(rows.column(0)[0].as_py() or "")


def _demand_same(files: Sequence[Path], schema: Any, features: dict[str, Any], *columns: str) -> None:
    """All files of a split have the columns of the first, and number the classes as it does.

    Raises:
        UserError: One has not; it is named.
    """
    for file in files[1:]:
        other = _schema(file)
        for column in columns:
            if column not in other.names:
                raise UserError(
                    f"{shown(file)} has no column {shown(column)}, and {shown(files[0])} has; its columns: "
                    f"{', '.join(map(shown, other.names))}"
                )
            kinds = [_plain_kind(one.field(column).type) for one in (schema, other)]
            if kinds[0] != kinds[1]:
                raise UserError(
                    f"{shown(file)}: column {shown(column)} holds {shown(kinds[1], 80)}, and that of "
                    f"{shown(files[0])} {shown(kinds[0], 80)}; write both alike"
                )
            names, own = (one.get(column, {}).get("names") for one in (features, _features(other)))
            if names != own:
                raise UserError(
                    f"{shown(file)} numbers the classes differently from {shown(files[0])} (column {shown(column)}): "
                    "they are of two data sets, or of two versions of one"
                )


def _schema(file: Path) -> Any:
    pyarrow = import_pyarrow()
    if not file.is_file():
        raise UserError(f"{shown(file)} is no regular file that is there; give parquet files")
    with reading_parquet(shown(file), pointer_hint(file)):
        return pyarrow.parquet.read_schema(file)


def _features(schema: Any) -> dict[str, Any]:
    """Columns as the `huggingface` entry of the schema describes them; empty where there is none that can be read.

    Of a description no more is taken than what is as `datasets` writes it: `_type`, `shape`, and `names`, which are a
    list of texts, or in older files {"0": text}.

    Raises:
        UserError: Names that number the classes in no way.
    """
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: _feature(name, one) for name, one in features.items() if isinstance(one, dict)}


def _feature(column: str, given: dict[str, Any]) -> dict[str, Any]:
    names, shape = given.get("names"), given.get("shape")
    if isinstance(names, dict) and all(key.isascii() and key.isdigit() and len(key) < 10 for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"the classes of column {shown(column)} are {shown(names, 60)} in the file's huggingface entry, expected a "
            "list of names; write the file again with datasets, or remove the entry"
        )
    is_shape = isinstance(shape, list) and all(isinstance(side, int) and 0 < side < 2**31 for side in shape)
    return {"_type": given.get("_type"), "names": names, "shape": shape if is_shape else None}


def _image_columns(schema: Any, features: dict[str, Any], asked: str | None) -> list[str]:
    """Columns that may hold the pictures, the likeliest first."""
    if asked is not None:
        return [asked] if asked in schema.names else []
    columns = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    return [name for name in (*columns, "image", "img") if name in schema.names]


def _label_columns(schema: Any, features: dict[str, Any], asked: str | None) -> list[str]:
    """Columns that may hold the classes, the likeliest first."""
    if asked is not None:
        return [asked] if asked in schema.names else []
    columns = ["label", "labels", *(name for name, one in features.items() if one.get("_type") == "ClassLabel")]
    return [name for name in (*columns, "fine_label", "class", "target") if name in schema.names]


def _shape(schema: Any, features: dict[str, Any], column: str) -> list[int] | None:
    """Shape of a picture whose pixels lie flat in a cell, by the column's own type or by `datasets`."""
    shape = getattr(schema.field(column).type, "shape", None) or features.get(column, {}).get("shape")
    return [int(side) for side in shape] if shape else None


def _numbered(labels: Any, feature: dict[str, Any], where: str) -> tuple[list[str], np.ndarray]:
    """Class names and class numbers of a label column of numbers or of names."""
    pyarrow = import_pyarrow()
    kind = _plain_kind(labels.type)
    if labels.type != kind:  # a dictionary's own values may be missing, too
        with reading_parquet(where):
            labels = labels.cast(kind)
    if labels.null_count:
        raise UserError(f"{where}: {labels.null_count} rows have no label")
    if pyarrow.types.is_nested(kind):
        raise UserError(f"{where}: a row has several labels ({shown(kind, 80)}); an image needs one class")
    if pyarrow.types.is_integer(kind):
        values = labels.to_numpy()
        least, highest = int(values.min()), int(values.max())
        names = feature.get("names")
        if least < -1 or highest >= 2**63 or (not names and highest >= MOST_CLASSES):
            bad = least if least < -1 else highest
            raise UserError(f"{where}: label {bad} is no class number; allowed: 0 to {MOST_CLASSES - 1}")
        return names or [str(c) for c in range(highest + 1)], values.astype(np.int64)
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind) or pyarrow.types.is_temporal(kind):
        raise UserError(f"{where}: labels are {shown(kind, 80)}, expected whole numbers or names")
    with reading_parquet(where):
        texts = [text_of(value) for value in labels.to_pylist()]
    if None in texts:
        raise UserError(f"{where}: row {texts.index(None) + 1} has no label")
    names, numbers = np.unique([composed(str(text)) for text in texts], return_inverse=True)
    return names.tolist(), numbers


def _plain_kind(kind: Any) -> Any:
    """The type of a column's values: of a dictionary that of its entries."""
    return kind.value_type if import_pyarrow().types.is_dictionary(kind) else kind


class RowGroups:
    """The image column by row. Every process reads its own row groups; threads share them."""

    def __init__(self, files: Sequence[Path], column: str) -> None:
        self.files = files
        self.bytes = sum(file.stat().st_size for file in files)
        self._column = column
        self._cached = CACHED_ROW_GROUPS
        self._groups: list[tuple[int, int]] = []  # file, and group in it
        self._starts = [0]  # number of each group's first row; at last that of all rows
        self._firsts: list[int] = []  # number of each file's first row
        for number, file in enumerate(files):
            with reading_parquet(shown(file)):
                metadata = import_pyarrow().parquet.read_metadata(file)
            self._firsts.append(self._starts[-1])
            for group in range(metadata.num_row_groups):
                self._groups.append((number, group))
                self._starts.append(self._starts[-1] + metadata.row_group(group).num_rows)
        self._held: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:  # spawned workers read anew
        return {**self.__dict__, "_held": OrderedDict(), "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def hold_all(self) -> None:
        """Read all now, so that forked workers share the memory; what is damaged is told when it is asked for."""
        self._cached = len(self._groups)
        for group in range(len(self._groups)):
            with suppress(Exception):
                self._group(group)

    def _group(self, position: int) -> Any:
        with self._lock:
            if position not in self._held:
                number, group = self._groups[position]
                # threads of pyarrow's pool do not survive a fork
                with import_pyarrow().parquet.ParquetFile(self.files[number]) as file:
                    table = file.read_row_group(group, columns=[self._column], use_threads=False)
                self._held[position] = table.column(self._column).combine_chunks()
                while len(self._held) > self._cached:
                    self._held.popitem(last=False)
            self._held.move_to_end(position)
            return self._held[position]

    def __len__(self) -> int:
        return self._starts[-1]

    def place(self, i: int) -> tuple[Path, int]:
        """File, and row in that file."""
        number = self._groups[bisect_right(self._starts, i) - 1][0]
        return self.files[number], i - self._firsts[number]

    def value(self, i: int) -> Any:
        """The cell of image `i`, in Python's types.

        Raises:
            BrokenImage: Its row group, or the cell, cannot be read.
        """
        position = bisect_right(self._starts, i) - 1
        try:
            return self._group(position)[i - self._starts[position]].as_py()
        except Exception as error:  # on damaged data pyarrow raises nearly every type there is
            file, row = self.place(i)
            raise BrokenImage(f"{file} row {row}", f"damaged: {shown(first_line(error))}") from None


@dataclass(eq=False, repr=False, kw_only=True)
class ParquetSource(Source):
    """Images from the rows of parquet files.

    Attributes:
        rows: The image column.
        shape: Shape of the pixels of a cell that holds them flat; None where it is not known.
        held: Whether all of them are to be kept in memory.
        chosen: Number of the row of each image; None for all rows.
    """

    rows: RowGroups
    shape: Sequence[int] | None
    held: bool
    chosen: np.ndarray | None = None

    def read(self, i: int) -> Image.Image:
        return self._opened(i, as_image=True)

    def encoded(self, i: int) -> bytes | None:
        return self._opened(i, as_image=False)

    def _opened(self, i: int, *, as_image: bool) -> Any:
        try:
            cell = self.rows.value(self._row(i))
            folder = Path() if isinstance(cell, bytes) else self.rows.place(self._row(i))[0].parent
            content = content_of(cell, folder, "")
            if not as_image:
                return content
            if content is None:
                return as_seen(pixels_of(cell, self.shape, ""), self.in_chans)
            return read_image(content, self.in_chans, "", max_pixels=self.max_pixels)
        except BrokenImage as broken:  # the place is looked up only when it is needed
            raise BrokenImage(broken.where or self.location(i), broken.why) from None

    def prepare(self) -> None:
        if self.held:
            self.rows.hold_all()

    def _row(self, i: int) -> int:
        return i if self.chosen is None else int(self.chosen[i])

    def location(self, i: int) -> str:
        file, row = self.rows.place(self._row(i))
        return f"{file} row {row}"


def content_of(cell: Any, folder: Path, where: str) -> bytes | None:
    """The picture file that a cell holds or names; None for pixels, which `pixels_of` takes.

    Args:
        cell: Bytes, a path relative to the table's file, base64, a data URL, or {"bytes", "path"} of these.
        folder: Where the table's file lies.
        where: The cell, for messages.

    Raises:
        BrokenImage: There is none, or the file that is named cannot be read.
    """
    if isinstance(cell, dict):
        if cell and not {"bytes", "path"} & set(cell):
            raise BrokenImage(where, f"the row holds {', '.join(map(shown, cell))}, expected bytes or path")
        cell = cell.get("bytes") or cell.get("path") or cell.get("bytes")
    if cell is None:
        raise BrokenImage(where, "the row has no image")
    if isinstance(cell, str):
        return _content_of_text(cell, folder, where)
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, list) and len(cell) > 16 and isinstance(cell[0], int):
        head = cell[:32]
        if all(isinstance(value, int) and 0 <= value < 256 for value in head) and looks_like_picture(bytes(head)):
            return bytes(cell)
    return None


def is_picture_text(text: str) -> bool:
    """Whether a text is a picture itself, as base64 or a data URL, and not the name of a file."""
    head = _decoded(text[:64], "", strict=False) if len(text) > 64 else b""
    return _DATA_URL.fullmatch(text) is not None or looks_like_picture(head)


def _content_of_text(text: str, folder: Path, where: str) -> bytes:
    data_url = _DATA_URL.fullmatch(text)
    if data_url is not None:
        if not data_url["kind"].endswith(";base64"):
            return unquote_to_bytes(data_url["content"])
        return _decoded(data_url["content"], where)
    if _URL.match(text):
        raise BrokenImage(where, f"{shown(text, 80)} is an address; pictures are not downloaded: fetch them first")
    if is_picture_text(text):
        return _decoded(text, where)
    return read_bytes(os.path.join(folder, text), where if "\n" in text else None)


def _decoded(text: str, where: str, *, strict: bool = True) -> bytes:
    try:
        return base64.b64decode("".join(text.split()).translate(_URL_SAFE), validate=True)
    except (binascii.Error, ValueError) as error:
        if strict:
            raise BrokenImage(where, f"its base64 text cannot be decoded: {error}") from None
        return b""


def pixels_of(cell: Any, shape: Sequence[int] | None, where: str) -> Image.Image:
    """A picture from its levels.

    Args:
        cell: Levels 0 to 255, flat or nested: (H, W), (H, W, C) or (C, H, W).
        shape: Shape of a flat cell; None where it is not known.
        where: The cell, for messages.

    Raises:
        BrokenImage: Levels that are no 8-bit numbers, or a shape that is no picture's.
    """
    try:
        levels = np.asarray(cell)
        if levels.ndim == 1 and shape is not None:
            levels = levels.reshape(tuple(shape))
    except ValueError as error:  # rows of unequal lengths, another number of levels
        raise BrokenImage(where, f"its pixels make no picture: {shown(error)}") from None
    if levels.ndim == 1:
        raise BrokenImage(
            where, f"{levels.size} pixels without a shape; store the picture's file, or rows of pixels (H, W, C)"
        )
    if not np.issubdtype(levels.dtype, np.integer) or levels.size == 0:
        raise BrokenImage(where, f"its pixels are {levels.dtype}, expected whole numbers 0 to 255")
    if levels.min() < 0 or levels.max() > 255:
        raise BrokenImage(where, f"its pixels go from {levels.min()} to {levels.max()}, expected 0 to 255")
    return Image.fromarray(_channels_last(levels, where).astype(np.uint8))


def _channels_last(levels: np.ndarray, where: str) -> np.ndarray:
    """(H, W) or (H, W, C) of levels whose channels may come first."""
    if levels.ndim == 2:
        return levels
    if levels.ndim == 3:
        last, first = levels.shape[-1] in _CHANNELS, levels.shape[0] in _CHANNELS
        if last:
            return levels[..., 0] if levels.shape[-1] == 1 else levels
        if first:
            return levels[0] if levels.shape[0] == 1 else np.moveaxis(levels, 0, -1)
    raise BrokenImage(where, f"its pixels have the shape {levels.shape}, expected (H, W), (H, W, C) or (C, H, W)")
