"""What is to be known of one image before it is trained on, and of many as rows of an array."""

from __future__ import annotations

import enum
import hashlib
import io

import numpy as np
from PIL import Image

from illama.data.decode.images import PILLOW_IN_OUR_HANDS, BrokenImage, read_image
from illama.data.source import Source
from illama.data.sources.formats import ending_of, fits, readable_formats


class Issue(enum.IntFlag):
    """What can be said of an image; several may hold."""

    BROKEN = 1
    TINY = 2
    WRONG_ENDING = 4
    GREY = 8
    CMYK = 16
    DEEP = 32
    TRANSPARENT = 64
    TURNED = 128
    ANIMATED = 256


# 38 bytes an image: half a gigabyte for the 14 million of ImageNet-21K. The pixels' digest has 128 bits, that of the
# file 64: it is compared only where the pixels are the same.
ROW = np.dtype(
    [
        ("width", np.uint32),
        ("height", np.uint32),
        ("bytes", np.uint32),
        ("file", np.uint64),
        ("pixels", np.uint64, 2),
        ("findings", np.uint16),
    ]
)
_MODES = {"1": Issue.GREY, "L": Issue.GREY, "LA": Issue.GREY, "CMYK": Issue.CMYK}
_ORIENTATION = 0x0112
_ANIMATED_FORMATS = frozenset({"GIF", "PNG", "WEBP"})


def inspect(source: Source, start: int, stop: int, min_side: int) -> tuple[np.ndarray, dict[int, str]]:
    """Read some images of a source completely.

    Args:
        source: Images with three channels.
        start, stop: Positions.
        min_side: A shorter side of fewer pixels is tiny.

    Returns:
        A row for each image, (stop - start,) of `ROW`; why it is broken, or which format a wrongly named file has, by
        position in the source.
    """
    rows = np.zeros(stop - start, dtype=ROW)
    details = {}
    for i in range(start, stop):
        row = rows[i - start]
        try:
            content = source.encoded(i)
            image = source.read(i) if content is None else read_image(content, max_pixels=source.max_pixels)
        except BrokenImage as broken:
            row["findings"] = Issue.BROKEN
            details[i] = broken.why
            continue
        row["width"], row["height"] = image.size
        row["pixels"] = _digest(16, str(image.size).encode(), image.tobytes())
        if min(image.size) < min_side:
            row["findings"] |= Issue.TINY
        if content is not None:
            row["bytes"] = min(len(content), 2**32 - 1)
            row["file"] = _digest(8, content)[0]
            findings, form = _header(content)
            row["findings"] |= findings
            if not fits(form, ending_of(source.location(i))):
                row["findings"] |= Issue.WRONG_ENDING
                details[i] = form
    return rows, details


def _digest(size: int, *contents: bytes) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=size)
    for content in contents:
        digest.update(content)
    return np.frombuffer(digest.digest(), dtype=np.uint64)


def _header(content: bytes) -> tuple[Issue, str]:
    """What the file's header says, and its format; of a file that can be read."""
    with PILLOW_IN_OUR_HANDS, Image.open(io.BytesIO(content), formats=readable_formats()) as image:
        found = _MODES.get(image.mode, Issue(0))
        if image.mode[0] in "IF":
            found |= Issue.DEEP
        if image.has_transparency_data:
            found |= Issue.TRANSPARENT
        if image.format in _ANIMATED_FORMATS and getattr(image, "is_animated", False):
            found |= Issue.ANIMATED
        try:
            if image.getexif().get(_ORIENTATION, 1) in range(2, 9):
                found |= Issue.TURNED
        except Exception:  # unreadable EXIF; reading the image ignores it too
            pass
        return found, image.format or ""
