"""Reads an image file as a person sees it: upright, in its real colours, on a white page.

What is not 8-bit is scaled by the range of its type, or by the one that the file states, never by its own values: two
pictures of a set would otherwise be scaled differently. What has no range, or values outside of it, is broken.

| values | range |
|---|---|
| 16-bit grey (PNG, TIFF, PGM, JPEG 2000) | 0 to 65535; of a TIFF file with fewer bits, theirs |
| 16-bit colour | its high byte |
| floating point (TIFF, PFM) | 0 to 1; whole numbers up to 255 are levels |
| 32-bit and signed whole numbers (TIFF) | none |
| any of TIFF | SMinSampleValue to SMaxSampleValue, or MinSampleValue to MaxSampleValue, where the file has them |
"""

from __future__ import annotations

import io
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import TracebackType

import numpy as np
from PIL import Image, ImageOps

from illama.console.text import shown
from illama.data.decode.jpeg import has_endless_scans
from illama.data.sources.formats import LFS_POINTER, looks_like_picture, readable_formats
from illama.errors import UserError
from illama.system.files import open_given, why

ImageFile = str | os.PathLike[str] | bytes

# Where Pillow keeps an orientation, besides the formats that carry it in their own tags.
_ORIENTATION_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
_ORIENTATION_FORMATS = frozenset({"TIFF", "MPO"})
# A larger image is not decoded: a few bytes can claim any size. Pillow's own limit.
MAX_PIXELS = 178_956_970
LARGEST_FILE = 1 << 30  # bytes
_BAND_PIXELS = 4 << 20
Span = tuple[float, float]  # the values that become 0 and 255; the first may be the larger one
# Tags of TIFF files: number of bits, meaning of 0, type of values, and the ranges that a file may state.
_BITS, _PHOTOMETRIC, _PLANAR, _SAMPLE_FORMAT = 258, 262, 284, 339
_WHITE_IS_ZERO, _PLANES, _SIGNED = 0, 2, 2
_STATED = ((340, 341), (280, 281))
_TEXT_CHUNK = "MAX_TEXT"  # of Pillow's words for a PNG file with too much text in it


# Pillow logs what it cannot open besides raising it; where nobody listens, Python would print that.
logging.getLogger("PIL").addHandler(logging.NullHandler())


class BrokenImage(Exception):  # noqa: N818 - it names the thing that was found, not a fault of ours
    """An image that cannot be read completely.

    Attributes:
        where: File name, or file and row.
        why: The reason in a few words.
    """

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where = where
        self.why = why

    def __str__(self) -> str:
        return f"{shown(self.where)}: {self.why}"


def read_image(
    file: ImageFile, in_chans: int = 3, where: str | None = None, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode one image completely.

    The EXIF orientation is applied; CMYK, palettes and other colour spaces become RGB; transparent parts
    become white; what is not 8-bit is scaled (see the module); of an animation the first frame is taken. The content
    decides the format, not the ending of the name.

    Args:
        file: Path of the file, or the file's bytes.
        in_chans: 3 for an "RGB" image (grey is repeated), 1 for an "L" image.
        where: What to call the image in messages; the path by default.
        max_pixels: A larger image is refused before it is decoded.

    Returns:
        An 8-bit image of mode "RGB" or "L".

    Raises:
        BrokenImage: The file is missing, empty, no image, cut off, damaged, too large, or has values without a range.
        UserError: `in_chans` is neither 1 nor 3.
    """
    check_channels(in_chans)
    if isinstance(file, bytes):
        name, content = f"{len(file)} bytes" if where is None else where, file
    else:
        name, content = where or os.fspath(file), read_bytes(file, where)
    if not content:
        raise BrokenImage(name, "the file is empty")
    if has_endless_scans(content):
        raise BrokenImage(name, "a JPEG file of more scans than any camera or encoder writes; save it again")
    with PILLOW_IN_OUR_HANDS:
        try:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as image:
                if image.width * image.height > max_pixels:
                    raise BrokenImage(name, _too_large(image.width, image.height, max_pixels))
                span, key = span_of(image), _deep_key(image, content)
                image.load()
                if key is not None:
                    image.info["transparency"] = key
                return as_seen(_upright(image), in_chans, span)
        except BrokenImage as broken:
            raise BrokenImage(name, broken.why) from None
        except Image.UnidentifiedImageError:
            raise BrokenImage(name, _unidentified(content)) from None
        except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
            raise BrokenImage(name, _in_words(error)) from None


def read_bytes(file: str | os.PathLike[str], where: str | None = None) -> bytes:
    """The content of an image file.

    Raises:
        BrokenImage: It is missing or unreadable.
    """
    return _read(file, where or os.fspath(file), None)[1]


def read_head(file: str | os.PathLike[str], length: int) -> tuple[int, bytes]:
    """Size of an image file, and its first bytes.

    Raises:
        BrokenImage: It is missing or unreadable.
    """
    return _read(file, os.fspath(file), length)


def _read(file: str | os.PathLike[str], where: str, length: int | None) -> tuple[int, bytes]:
    """Size of a regular file, and its first bytes (None: all of them)."""
    try:
        with open_given(file, LARGEST_FILE) as opened:
            size = os.fstat(opened.fileno()).st_size
            return size, opened.read(LARGEST_FILE if length is None else length)
    except (OSError, ValueError) as error:
        raise BrokenImage(where, why(error)) from None


def check_channels(in_chans: int) -> None:
    """Refuse channel counts that image files do not have."""
    if in_chans not in (1, 3):
        raise UserError(f"model.in_chans is {in_chans}, but images are read with 1 (grey) or 3 (RGB) channels")


def as_seen(image: Image.Image, in_chans: int = 3, span: Span | None = None) -> Image.Image:
    """A decoded image of any Pillow mode as 8-bit "RGB" (`in_chans` 3) or "L" (1), on white.

    Args:
        image: Any.
        in_chans: 1 or 3.
        span: From `span_of`; that of the mode when None.

    Raises:
        BrokenImage: Its values have no range, or lie outside of it.
    """
    if _is_wide(image.mode):
        image = _to_8_bits(image, span or span_of(image))
    if image.has_transparency_data:
        image = _on_white(image)
    if in_chans == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")  # palettes and CMYK reach "L" by way of their colours
    mode = "RGB" if in_chans == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def span_of(image: Image.Image) -> Span | None:
    """The values that become black and white, of an image with values beyond 8 bits; None for all others.

    Args:
        image: As it was opened; afterwards a TIFF file's tags are gone.

    Raises:
        BrokenImage: Values of this type have no range, and the file states none.
    """
    tags = getattr(image, "tag_v2", {})
    if _first(tags.get(_PLANAR)) == _PLANES and len(tags.get(_BITS, ())) > 1 and _first(tags.get(_BITS)) != 8:
        raise BrokenImage("", "colours of 16 bits in planes of their own; save it again as 8-bit RGB")
    if image.mode == "L" and _first(tags.get(_SAMPLE_FORMAT)) == _SIGNED:
        raise BrokenImage("", "signed 8-bit values; convert it to unsigned ones")
    if not _is_wide(image.mode):
        return None
    span = next((stated for pair in _STATED if (stated := _stated(tags, pair)) is not None), None)
    if span is None and image.mode.startswith("I;16"):
        span = 0.0, 2.0 ** (_first(tags.get(_BITS)) or 16) - 1
    elif span is None and image.mode == "F":
        span = 0.0, 1.0
    elif span is None and image.format in ("PNG", "PPM"):
        span = 0.0, 65535.0
    elif span is None:
        kind = "signed or 32-bit whole numbers have no range"
        raise BrokenImage("", f"{kind}; convert it to 8 or 16 bits, or state it (TIFF's SMaxSampleValue)")
    return span[::-1] if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else span


def _is_wide(mode: str) -> bool:
    return mode.startswith("I;16") or mode in ("I", "F")


def _first(tag: object) -> int | None:
    value = tag[0] if isinstance(tag, tuple) and tag else tag
    return value if isinstance(value, int) else None


def _stated(tags: Mapping[int, object], pair: tuple[int, int]) -> Span | None:
    """The range that a TIFF file states in one pair of tags."""
    low, high = (tag[0] if isinstance(tag := tags.get(number), tuple) and tag else tag for number in pair)
    low = 0 if low is None else low
    if not isinstance(low, int | float) or not isinstance(high, int | float) or not low < high:
        return None
    return float(low), float(high)


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """An image in bands of a bounded size with the row that each begins at: a few bytes can hold the largest image,
    and what is done to all of it at once takes gigabytes."""
    rows = max(1, _BAND_PIXELS // image.width)
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparent parts as RGB, these in white."""
    seen = Image.new("RGB", image.size)
    for top, band in _bands(image):
        rgba = band.convert("RGBA")
        opaque = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
        if rgba.size == image.size:
            return opaque
        seen.paste(opaque, (0, top))
    return seen


def _to_8_bits(image: Image.Image, span: Span | None) -> Image.Image:
    """Wide grey values as 8-bit ones; transparent ones are white.

    Raises:
        BrokenImage: Values that are no finite numbers, or outside of the span.
    """
    assert span is not None
    strange, least, most, are_whole = 0, math.inf, -math.inf, True
    for _, values in _values(image):
        finite = np.isfinite(values)
        if not finite.all():
            strange += int((~finite).sum())
            continue
        least, most = min(least, float(values.min())), max(most, float(values.max()))
        are_whole = are_whole and not (values % 1).any()
    if strange:
        raise BrokenImage("", f"{strange} of its {image.width * image.height} values are not finite (NaN or infinity)")
    low, high = min(span), max(span)
    if (low, high) == (0, 1) and 1 < most <= 255 and least >= 0 and are_whole:
        span = (0.0, 255.0) if span == (0, 1) else (255.0, 0.0)
        high = 255.0
    slack = 1e-6 * (high - low)
    if least < low - slack or most > high + slack:
        raise BrokenImage(
            "",
            f"its values go from {least:g} to {most:g}, outside of the range of its type ({low:g} to {high:g}); "
            "rescale them, or state the range (TIFF's SMinSampleValue and SMaxSampleValue)",
        )
    clear = image.info.get("transparency")
    seen = np.empty((image.height, image.width), dtype=np.uint8)
    for top, values in _values(image):
        scaled = np.rint(np.clip((values - span[0]) / (span[1] - span[0]), 0, 1) * 255)
        if isinstance(clear, int):
            scaled[values == clear] = 255
        seen[top : top + len(values)] = scaled
    return Image.fromarray(seen)


def _values(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """The values of a wide image in bands, with the row that each begins at."""
    return ((top, np.asarray(band).astype(np.float64)) for top, band in _bands(image))


def _deep_key(image: Image.Image, content: bytes) -> tuple[int, ...] | int | None:
    """The transparent colour of a PNG file with 2, 4 or 16 bits a channel in the 8 that Pillow makes of them."""
    key = image.info.get("transparency")
    bits = content[24] if image.format == "PNG" and len(content) > 24 else 8
    if isinstance(key, tuple):
        return tuple(value >> 8 for value in key) if bits == 16 else None
    return (key * (255 // (2**bits - 1)),)[0] if isinstance(key, int) and image.mode == "L" and bits in (2, 4) else None


def _unidentified(content: bytes) -> str:
    """Why Pillow does not know a file."""
    if content.startswith(LFS_POINTER):
        return "only Git LFS's pointer to the picture; fetch it with git lfs pull"
    if looks_like_picture(content[:32]):
        return "damaged, or of a kind of its format that is not read; save it again as 8-bit RGB, as PNG or JPEG"
    return "not an image of a known format"


def _too_large(width: int, height: int, most: int) -> str:
    return (
        f"{width:,} x {height:,} pixels are more than data.max_image_pixels={most}; shrink it, or give a larger "
        f"data.max_image_pixels={width * height}"
    )


def _in_words(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if _TEXT_CHUNK in text:
        return "a text in the PNG file is longer than Pillow reads; save it again without its texts"
    return shown(text)


def _upright(image: Image.Image) -> Image.Image:
    if image.format not in _ORIENTATION_FORMATS and _ORIENTATION_KEYS.isdisjoint(image.info):
        return image
    with suppress(Exception):  # unreadable EXIF says nothing about the pixels; viewers ignore it too
        ImageOps.exif_transpose(image, in_place=True)  # a copy of the largest image would be 700 MB
    return image


class _PillowInOurHands:
    """While any thread reads: Pillow's warnings are off (warnings.catch_warnings alone is not thread-safe), and so is
    its limit on pixels, for which ours stands."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._saved = warnings.catch_warnings()
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._readers += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._saved.__exit__(kind, error, trace)
                Image.MAX_IMAGE_PIXELS = self._limit


PILLOW_IN_OUR_HANDS = _PillowInOurHands()
