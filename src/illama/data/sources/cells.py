"""What a cell of a table may hold for a picture: a file's bytes, text that stands for one, or pixels."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import BrokenImage, read_bytes
from illama.data.sources.formats import looks_like_picture

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(?P<kind>[^,]*),(?P<content>.*)", re.DOTALL)
_URL_SAFE = str.maketrans("-_", "+/")  # a second alphabet of base64
_CHANNELS = (1, 3, 4)


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
