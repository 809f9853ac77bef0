"""Images in the rows of parquet files: which row lies where, and what a cell may hold for a picture.

A cell holds a file's bytes, text that stands for one (a path, base64, a data URL), or pixels.
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
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import BrokenImage, as_seen, read_bytes, read_image
from illama.data.source import Source
from illama.data.sources.formats import looks_like_picture
from illama.data.sources.table import first_line, import_pyarrow, reading_parquet

CACHED_ROW_GROUPS = 8
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(?P<kind>[^,]*),(?P<content>.*)", re.DOTALL)
_URL_SAFE = str.maketrans("-_", "+/")  # a second alphabet of base64
_CHANNELS = (1, 3, 4)


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
