"""The random resized crop, drawn from an image's size and computed from no more than its pixels."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from illama.data.decode.lazy_image import Box, Picture

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
