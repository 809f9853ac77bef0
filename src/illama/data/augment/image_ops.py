"""Colour operations on uint8 batches that equal Pillow's ImageOps and ImageEnhance, level by level.

Images are (B, C, H, W) uint8, C 3 (RGB) or 1 (grey); an argument is (B,) float32 on their device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _per_image(argument_B: Tensor) -> Tensor:
    return argument_B.view(-1, 1, 1, 1)


def _histogram(images: Tensor) -> Tensor:
    """Counts (B, C, 256) int64."""
    B, C = images.shape[:2]
    levels = images.reshape(B, C, -1).long()
    counts = torch.zeros(B, C, 256, dtype=torch.long, device=images.device)
    return counts.scatter_add_(2, levels, torch.ones_like(levels))


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replace level v of channel c of image b by table[b, c, v]."""
    B, C = images.shape[:2]
    return table.to(torch.uint8).gather(2, images.reshape(B, C, -1).long()).view_as(images)


def auto_contrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0 to 255."""
    present = _histogram(images) > 0
    level = torch.arange(256, device=images.device)
    low = torch.where(present, level, 255).amin(2, keepdim=True)
    high = torch.where(present, level, 0).amax(2, keepdim=True)
    # whole numbers where Pillow multiplies by a double: at most one level apart
    stretched = ((level - low) * 255).div((high - low).clamp(min=1), rounding_mode="floor").clamp(0, 255)
    return _look_up(images, torch.where(high > low, stretched, level))


def equalize(images: Tensor) -> Tensor:
    """Make each channel's levels equally frequent."""
    counts = _histogram(images)
    level = torch.arange(256, device=images.device)
    highest = torch.where(counts > 0, level, 0).amax(2, keepdim=True)
    step = (counts.sum(2, keepdim=True) - counts.gather(2, highest)).div(255, rounding_mode="floor")
    below = counts.cumsum(2) - counts
    spread = (below + step.div(2, rounding_mode="floor")).div(step.clamp(min=1), rounding_mode="floor")
    return _look_up(images, torch.where(step > 0, spread.clamp(max=255), level))


def invert(images: Tensor) -> Tensor:
    """255 minus the level."""
    return 255 - images


def posterize(images: Tensor, bits_B: Tensor) -> Tensor:
    """Keep the highest bits only; with 0 bits the image is black."""
    step = torch.exp2(8 - _per_image(bits_B)).to(torch.int16)
    return (images.to(torch.int16).div(step, rounding_mode="floor") * step).to(torch.uint8)


def solarize(images: Tensor, threshold_B: Tensor) -> Tensor:
    """Invert the levels from the threshold on."""
    return torch.where(images.to(torch.int16) < _per_image(threshold_B), images, 255 - images)


def solarize_add(images: Tensor, add_B: Tensor) -> Tensor:
    """Brighten the levels below 128."""
    brighter = (images.to(torch.int16) + _per_image(add_B).to(torch.int16)).clamp_(max=255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def _blend(base: Tensor, images: Tensor, factor_B: Tensor) -> Tensor:
    """base + factor (image - base), cut to whole levels as Pillow does."""
    base = base.float()
    return (base + _per_image(factor_B) * (images.float() - base)).clamp_(0, 255).to(torch.uint8)


def grey(images: Tensor) -> Tensor:
    """Luma of ITU-R 601 in Pillow's whole numbers, (B, 1, H, W) int32."""
    if images.shape[1] == 1:
        return images.int()
    red, green, blue = images.int().unbind(1)
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16)[:, None]


def color(images: Tensor, factor_B: Tensor) -> Tensor:
    """0 is grey, 1 the image, more is more colourful."""
    return _blend(grey(images), images, factor_B)


def contrast(images: Tensor, factor_B: Tensor) -> Tensor:
    """0 is the mean grey, 1 the image."""
    luma = grey(images).long()
    pixels = luma[0].numel()
    mean = (2 * luma.sum((1, 2, 3), keepdim=True) + pixels).div(2 * pixels, rounding_mode="floor")
    return _blend(mean, images, factor_B)


def brightness(images: Tensor, factor_B: Tensor) -> Tensor:
    """0 is black, 1 the image."""
    return _blend(torch.zeros((), device=images.device), images, factor_B)


def sharpness(images: Tensor, factor_B: Tensor) -> Tensor:
    """0 is smoothed by (1 1 1, 1 5 1, 1 1 1) / 13, 1 the image; the border stays."""
    H, W = images.shape[2:]
    smooth = images.int()
    if H > 2 and W > 2:
        level = images.int()
        total = 4 * level[:, :, 1:-1, 1:-1]
        for y in range(3):
            for x in range(3):
                total = total + level[:, :, y : y + H - 2, x : x + W - 2]
        smooth = level.clone()
        smooth[:, :, 1:-1, 1:-1] = (total + 6).div(13, rounding_mode="floor")
    return _blend(smooth, images, factor_B)
