"""Reads an image file as a person sees it: upright, in its real colours, on a white page."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image, ImageOps

from illama.errors import UserError

ImageFile = str | os.PathLike[str] | bytes

# Where Pillow keeps an orientation, besides the formats that carry it in their own tags.
_ORIENTATION_KEYS = frozenset({"exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"})
_ORIENTATION_FORMATS = frozenset({"TIFF", "MPO"})


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
        return f"{self.where}: {self.why}"


def read_image(file: ImageFile, in_chans: int = 3, where: str | None = None) -> Image.Image:
    """Decode one image completely.

    The EXIF orientation is applied; CMYK, palettes and other colour spaces become RGB; transparent parts
    become white; 16-bit values are scaled to 8 bits; of an animation the first frame is taken. The content
    decides the format, not the ending of the name.

    Args:
        file: Path of the file, or the file's bytes.
        in_chans: 3 for an "RGB" image (grey is repeated), 1 for an "L" image.
        where: What to call the image in messages; the path by default.

    Returns:
        An 8-bit image of mode "RGB" or "L".

    Raises:
        BrokenImage: The file is missing, empty, no image, cut off or damaged.
        UserError: `in_chans` is neither 1 nor 3.
    """
    check_channels(in_chans)
    if isinstance(file, bytes):
        name, content = where or f"{len(file)} bytes", file
    else:
        name, content = where or os.fspath(file), read_bytes(file, where)
    if not content:
        raise BrokenImage(name, "the file is empty")
    with _PILLOW_QUIET:
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                return as_seen(_upright(image), in_chans)
        except Image.UnidentifiedImageError:
            raise BrokenImage(name, "not an image of a known format") from None
        except Exception as error:  # on damaged data Pillow's decoders raise nearly every type there is
            raise BrokenImage(name, str(error) or type(error).__name__) from None


def read_bytes(file: str | os.PathLike[str], where: str | None = None) -> bytes:
    """The content of an image file.

    Raises:
        BrokenImage: It is missing or unreadable.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise BrokenImage(where or os.fspath(file), error.strerror or str(error)) from None


def check_channels(in_chans: int) -> None:
    """Refuse channel counts that image files do not have."""
    if in_chans not in (1, 3):
        raise UserError(f"model.in_chans is {in_chans}, but images are read with 1 (grey) or 3 (RGB) channels")


def as_seen(image: Image.Image, in_chans: int = 3) -> Image.Image:
    """A decoded image of any Pillow mode as 8-bit "RGB" (`in_chans` 3) or "L" (1), on white."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = _to_8_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    if in_chans == 1 and image.mode not in ("1", "L"):
        image = image.convert("RGB")  # palettes and CMYK reach "L" by way of their colours
    mode = "RGB" if in_chans == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale wide grey values instead of clipping them; the range is the format's, else the smallest that fits."""
    values = np.asarray(image).astype(np.float64)
    highest = float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        full = 65535.0
    elif image.mode == "F" and highest <= 1:
        full = 1.0
    else:
        full = next((top for top in (255.0, 65535.0) if highest <= top), highest)
    scaled = np.rint(np.clip(values / full, 0, 1) * 255)
    return Image.fromarray(scaled.astype(np.uint8))


def _upright(image: Image.Image) -> Image.Image:
    if image.format not in _ORIENTATION_FORMATS and _ORIENTATION_KEYS.isdisjoint(image.info):
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable EXIF says nothing about the pixels; viewers ignore it too
        return image


class _QuietPillow:
    """Turns Pillow's warnings off while any thread reads: warnings.catch_warnings alone is not thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\b")
            self._readers += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._saved.__exit__(kind, error, trace)


_PILLOW_QUIET = _QuietPillow()
