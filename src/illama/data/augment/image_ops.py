"""Operations on uint8 batches that equal Pillow's: affine transforms, ImageOps, ImageEnhance.

Images are (B, C, H, W) uint8, C 3 (RGB) or 1 (grey); an argument is (B,) float32 on their device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from illama.data.loading.staging import constant

# Pillow cuts the result to whole levels; float32 may miss a whole number from below by this much.
_ROUNDING = 1e-3


def warp(images: torch.Tensor, matrices: torch.Tensor, fill: Sequence[int], taps: int = 4) -> torch.Tensor:
    """Transform each image by its own matrix.

    Output pixel (x, y) takes the input at (a x + b y + c, d x + e y + f), pixel centres lying at halves;
    where that is outside the image it becomes `fill`. Neighbours beyond the border repeat the border.

    Args:
        images: (B, C, H, W) uint8.
        matrices: (B, 6) float32 on the same device: a, b, c, d, e, f.
        fill: Level of each channel outside the image.
        taps: 4 for bicubic (Pillow's kernel, a = -1), 2 for bilinear.

    Returns:
        (B, C, H, W) uint8.
    """
    B, C, H, W = images.shape
    y, x = torch.meshgrid(
        torch.arange(H, device=images.device) + 0.5, torch.arange(W, device=images.device) + 0.5, indexing="ij"
    )
    a, b, c, d, e, f = (m.view(B, 1, 1) for m in matrices.unbind(1))
    x_in, y_in = a * x + b * y + c, d * x + e * y + f
    outside = (x_in < 0) | (x_in >= W) | (y_in < 0) | (y_in >= H)
    x0, y0 = torch.floor(x_in - 0.5), torch.floor(y_in - 0.5)
    weights_x, weights_y = _weights(x_in - 0.5 - x0, taps), _weights(y_in - 0.5 - y0, taps)
    pixels = images.reshape(B, C, H * W).float()
    total = torch.zeros_like(pixels)
    for j, weight_y in enumerate(weights_y):
        row = (y0.long() + (j - taps // 2 + 1)).clamp_(0, H - 1) * W
        for i, weight_x in enumerate(weights_x):
            column = (x0.long() + (i - taps // 2 + 1)).clamp_(0, W - 1)
            at = (row + column).view(B, 1, H * W).expand(B, C, H * W)
            total += pixels.gather(2, at) * (weight_y * weight_x).view(B, 1, H * W)
    warped = total.add_(_ROUNDING).clamp_(0, 255).to(torch.uint8).view(B, C, H, W)
    return torch.where(outside[:, None], constant(tuple(fill), torch.uint8, images.device).view(C, 1, 1), warped)


def _weights(t: torch.Tensor, taps: int) -> list[torch.Tensor]:
    """Interpolation weights of the neighbours at offset t, 0 to 1, from the second (or first) of them."""
    if taps == 2:
        return [1 - t, t]
    return [
        -t + 2 * t**2 - t**3,
        1 - 2 * t**2 + t**3,
        t + t**2 - t**3,
        -(t**2) + t**3,
    ]


def rotation(degrees: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Matrices (B, 6) that turn images counter-clockwise about their centre by (B,) degrees."""
    angle = -degrees * (math.pi / 180)
    cos, sin = torch.cos(angle), torch.sin(angle)
    half_w, half_h = width / 2, height / 2
    c = half_w - cos * half_w - sin * half_h
    f = half_h + sin * half_w - cos * half_h
    return torch.stack([cos, sin, c, -sin, cos, f], 1)


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
