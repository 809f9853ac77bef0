"""One image, decoded as late and as little as its use allows; the random resized crop, which asks for least."""

from __future__ import annotations

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from illama.data.decode.images import MAX_PIXELS, read_image
from illama.data.decode.jpeg import PlainJpeg, decode_plain, plain_jpeg

# The decoder's own sizes, 1 / shrink of the file's.
_SHRINKS = (8, 4, 2)


class Box(NamedTuple):
    """A rectangle in whole pixels."""

    left: int
    top: int
    width: int
    height: int


class Picture(ABC):
    """An image whose size is known.

    Attributes:
        size: (width, height) as a person sees it.
    """

    size: tuple[int, int]

    @abstractmethod
    def region(self, box: Box, least: tuple[int, int]) -> np.ndarray:
        """The pixels of a part, maybe of a smaller version of the image.

        Args:
            box: Within the image.
            least: (height, width); a smaller version is taken only while the part is at least as large in it.

        Returns:
            (h, w, C) uint8, to be used before this thread reads the next image.

        Raises:
            BrokenImage: The image cannot be read completely.
        """

    @abstractmethod
    def image(self) -> Image.Image:
        """All of it, 8-bit "RGB" or "L".

        Raises:
            BrokenImage: The image cannot be read completely.
        """


class DecodedPicture(Picture):
    """An image that Pillow has decoded."""

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.size = image.size

    def region(self, box: Box, least: tuple[int, int]) -> np.ndarray:
        part = self._image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        pixels = np.array(part)  # a copy: Pillow's own memory is read-only
        return pixels[..., None] if pixels.ndim == 2 else pixels

    def image(self) -> Image.Image:
        return self._image


class JpegPicture(Picture):
    """A plain JPEG file that is not decoded yet."""

    def __init__(self, content: bytes, header: PlainJpeg, in_chans: int, max_pixels: int = MAX_PIXELS) -> None:
        self._content = content
        self._header = header
        self._in_chans = in_chans
        self._max_pixels = max_pixels
        self.size = header.width, header.height

    def region(self, box: Box, least: tuple[int, int]) -> np.ndarray:
        height, width = least
        shrink = next((s for s in _SHRINKS if box.height // s >= height and box.width // s >= width), 1)
        pixels = decode_plain(self._content, self._header, self._in_chans, shrink)
        if pixels is None:
            return DecodedPicture(self.image()).region(box, least)
        left, top = box.left // shrink, box.top // shrink
        right, bottom = -(-(box.left + box.width) // shrink), -(-(box.top + box.height) // shrink)
        return pixels[top:bottom, left:right]

    def image(self) -> Image.Image:
        return read_image(self._content, self._in_chans, max_pixels=self._max_pixels)


def open_picture(content: bytes, in_chans: int, max_pixels: int = MAX_PIXELS) -> Picture:
    """An image from its file's bytes; one of more pixels than `max_pixels` is not decoded.

    Raises:
        BrokenImage: It cannot be read completely; a damaged JPEG file may say so only when it is decoded.
        UserError: `in_chans` is neither 1 nor 3.
    """
    header = plain_jpeg(content)
    if header is None or header.width * header.height > max_pixels:
        return DecodedPicture(read_image(content, in_chans, max_pixels=max_pixels))
    return JpegPicture(content, header, in_chans, max_pixels)


_ATTEMPTS = 10


@dataclass(frozen=True)
class ResizedCrop:
    """Part of random area and shape, resized to one size (Szegedy et al., 2015, as in timm and torchvision).

    Attributes:
        size: (height, width) of the result.
        scale: Area of the part as a share of the image's, least and most.
        ratio: Width / height of the part, least and most; drawn evenly on a logarithmic scale.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)

    def __call__(self, picture: Picture) -> torch.Tensor:
        """(C, H, W) uint8 in channels-last memory. Draws from Python's global generator."""
        return resize(picture.region(self.draw(*picture.size), self.size), self.size)

    def draw(self, width: int, height: int) -> Box:
        """A part of an image; after ten that do not fit, the largest central one of an allowed shape."""
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for _ in range(_ATTEMPTS):
            area = random.uniform(*self.scale) * width * height
            shape = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
            if 0 < w <= width and 0 < h <= height:
                top = random.randint(0, height - h)
                return Box(random.randint(0, width - w), top, w, h)
        w = min(width, max(1, round(height * self.ratio[1])))
        h = min(height, max(1, round(width / self.ratio[0])))
        return Box((width - w) // 2, (height - h) // 2, w, h)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> torch.Tensor:
    """Bicubic with antialiasing, in torch's whole-number kernel: at most two levels from Pillow, six times as fast.

    Args:
        pixels: (h, w, C) uint8; a part of a larger array will do.
        size: (H, W).

    Returns:
        (C, H, W) uint8, in channels-last memory that is nobody else's.
    """
    # in this order of steps torch sees channels-last memory; in any other its kernel is slower, and so is what follows
    part = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    if part.shape[2:] == size:
        return part[0].clone()
    return F.interpolate(part, size, mode="bicubic", antialias=True)[0]
