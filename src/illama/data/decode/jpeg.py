"""Plain JPEG files: their size before they are decoded, and the fast decoder where it is installed.

A plain file is one in which nothing is left to interpretation: grey or three 8-bit components, upright, one picture.
libjpeg-turbo decodes it, through simplejpeg or through Pillow, to the same levels. Whatever else a file may be is
Pillow's to read (`images.read_image`), which also says what is broken.
"""

from __future__ import annotations

import importlib
import io
import re
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, features

# Start-of-frame markers of Huffman-coded baseline, extended and progressive pictures.
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})
_PROGRESSIVE = 0xC2
_APP1, _APP2, _SCAN, _END = 0xE1, 0xE2, 0xDA, 0xD9
# The orientation entry of EXIF in either byte order, and that of XMP: any, and those that say "upright".
_ORIENTATION = re.compile(rb"\x01\x12\x00|\x12\x01.\x00|rientation", re.DOTALL)
_UPRIGHT = (
    b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x01",
    b"\x12\x01\x03\x00\x01\x00\x00\x00\x01\x00",
    b'tiff:Orientation="1"',
)
_MOST_SCANS = 100  # encoders write about ten, and one or two for a thumbnail
_KEPT_BYTES = 64 << 20
_kept = threading.local()


@dataclass(frozen=True)
class PlainJpeg:
    """What the header of a plain JPEG file says.

    Attributes:
        width, height: In pixels.
        is_grey: One component instead of three.
    """

    width: int
    height: int
    is_grey: bool


def plain_jpeg(content: bytes) -> PlainJpeg | None:
    """The header of a plain JPEG file; None where Pillow is to read the bytes, whatever they are."""
    if content[:3] != b"\xff\xd8\xff":
        return None
    at, frame, progressive = 2, None, False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == _SCAN:
            components = 1 if frame is not None and frame.is_grey else 3
            is_only = not progressive and content[at + 4 : at + 5] == bytes([components])
            return frame if is_only or not has_endless_scans(content) else None
        if marker == 0xFF or marker in _WITHOUT_LENGTH or marker == _END:
            return None
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        segment = content[at + 4 : end]
        if marker == _APP1 and _may_be_turned(segment):
            return None
        if marker == _APP2 and segment.startswith(b"MPF\0"):  # several pictures
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            progressive = marker == _PROGRESSIVE
            frame = _frame(segment) if marker in _FRAMES and frame is None else None
            if frame is None:
                return None
        at = end
    return None


def has_endless_scans(content: bytes) -> bool:
    """Whether a JPEG file goes over its picture so often that a few bytes cost minutes."""
    return content.startswith(b"\xff\xd8\xff") and content.count(b"\xff\xda") > _MOST_SCANS


def _may_be_turned(segment: bytes) -> bool:
    """Whether an EXIF or XMP segment may hold an orientation to be undone; chance matches cost a little time only."""
    for entry in _UPRIGHT:
        segment = segment.replace(entry, b"")
    return _ORIENTATION.search(segment) is not None


def _frame(segment: bytes) -> PlainJpeg | None:
    if len(segment) < 6 or segment[0] != 8 or segment[5] not in (1, 3):
        return None
    height, width = int.from_bytes(segment[1:3]), int.from_bytes(segment[3:5])
    if width * height == 0:
        return None
    return PlainJpeg(width, height, segment[5] == 1)


def decode_plain(content: bytes, header: PlainJpeg, in_chans: int, shrink: int = 1) -> np.ndarray | None:
    """The pixels of a plain JPEG file, at 1 / `shrink` of its size.

    Args:
        content: The file.
        header: Of the same file.
        in_chans: 3 for RGB (grey is repeated), 1 for grey (of grey files only).
        shrink: 1, 2, 4 or 8; the decoder computes only so many pixels.

    Returns:
        (ceil(height / shrink), ceil(width / shrink), C) uint8, to be used before this thread decodes the next; None
        where Pillow is to read the file: it is damaged, or colour is to become grey.
    """
    if in_chans == 1 and not header.is_grey:
        return None  # Pillow makes grey from RGB, which is not the file's own luma
    height, width = -(-header.height // shrink), -(-header.width // shrink)
    fast = _simplejpeg()
    if fast is None:
        return _by_pillow(content, in_chans, (header.width // shrink, header.height // shrink))
    try:
        pixels: np.ndarray = fast.decode_jpeg(
            content,
            "RGB" if in_chans == 3 else "GRAY",
            min_height=height,
            min_width=width,
            min_factor=shrink,
            buffer=_buffer(height * width * in_chans),
        )
    except ValueError:  # also for damage that Pillow reads over
        return None
    return pixels if pixels.shape == (height, width, in_chans) else None


def _by_pillow(content: bytes, in_chans: int, size: tuple[int, int]) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            image.draft(None, size)
            image.load()
            pixels = np.asarray(image.convert("RGB") if in_chans == 3 else image)
    except Exception:  # on damaged data Pillow's decoders raise nearly every type there is
        return None
    return pixels[..., None] if pixels.ndim == 2 else pixels


@cache
def _simplejpeg() -> Any:
    """The module, or None where it is absent or where Pillow decodes with another library, which could differ."""
    if not features.check_feature("libjpeg_turbo"):
        return None
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def _buffer(size: int) -> np.ndarray:
    """Memory that this thread's next picture overwrites: clearing fresh pages would take a third of the time."""
    if size > _KEPT_BYTES:
        return np.empty(size, np.uint8)
    if getattr(_kept, "memory", None) is None or len(_kept.memory) < size:
        _kept.memory = np.empty(size, np.uint8)
    memory: np.ndarray = _kept.memory
    return memory
