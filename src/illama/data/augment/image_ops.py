"""Operations on uint8 images that equal Pillow's: affine transforms, ImageOps, ImageEnhance.

Of batches: images are (B, C, H, W) uint8, C 3 (RGB) or 1 (grey); an argument is (B,) float32 on their device.

Of one image in a worker: shears and translations, Pillow's bicubic `Image.transform(AFFINE)` to one level, several
times as fast. Each row (or column) moves as a whole by its own fraction of a pixel, so four weights serve all of it;
Pillow computes sixteen products for every pixel and channel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from illama.data.loading.batch import constant

# Pillow cuts the result to whole levels; float32 may miss a whole number from below by this much.
_ROUNDING = 1e-3
_TAPS = 4


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
    part_x, part_y = x_in - 0.5 - x0, y_in - 0.5 - y0
    weights_x, weights_y = ([1 - t, t] if taps == 2 else cubic_weights(t) for t in (part_x, part_y))
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


def cubic_weights(t: torch.Tensor) -> list[torch.Tensor]:
    """Weights of the four neighbours at the fraction t, from the one before; Pillow's kernel, a = -1."""
    return [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]


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


def slide_rows(pixels: np.ndarray, shift_H: np.ndarray, fill: Sequence[int]) -> np.ndarray:
    """Move each row sideways.

    Args:
        pixels: (H, W, C) uint8.
        shift_H: Output column x takes the input at x + shift, (H,) float64.
        fill: Level of each channel where that lies outside the image.

    Returns:
        (H, W, C) uint8, at most one level from Pillow's.
    """
    H, W, C = pixels.shape
    whole = np.floor(shift_H)
    reach = min(int(np.abs(whole).max()), W) + _TAPS  # what lies farther off is filled below
    padded = np.zeros((H, (W + 2 * reach) * C), np.uint8)
    padded[:, reach * C : (reach + W) * C] = pixels.reshape(H, -1)
    for beyond in range(_TAPS):  # a neighbour beyond the border repeats the border
        padded[:, (reach - beyond - 1) * C : (reach - beyond) * C] = pixels[:, 0]
        padded[:, (reach + W + beyond) * C : (reach + W + beyond + 1) * C] = pixels[:, -1]
    first = np.clip(whole.astype(np.intp) - 1, -reach, reach - _TAPS + 1) + reach
    windows = np.lib.stride_tricks.sliding_window_view(padded, (W + _TAPS - 1) * C, axis=1)
    rows = torch.from_numpy(windows[np.arange(H), first * C].astype(np.float32))
    weights = cubic_weights(torch.from_numpy(shift_H - whole).float()[:, None])
    total = rows[:, : W * C] * weights[0]
    for tap in range(1, _TAPS):
        total.addcmul_(rows[:, tap * C : (tap + W) * C], weights[tap])
    moved = total.clamp_(0, 255).numpy().astype(np.uint8)  # cut to whole levels, as Pillow does
    _fill_outside(moved, shift_H, np.tile(np.asarray(fill, np.uint8), W), C)
    return moved.reshape(H, W, C)


def _fill_outside(moved: np.ndarray, shift_H: np.ndarray, level: np.ndarray, C: int) -> None:
    """Put `level` (W * C,) where the pixel centre x + 1/2 + shift is not within the width; `moved` is (H, W * C)."""
    W = moved.shape[1] // C
    centre_HW = np.arange(W) + 0.5 + shift_H[:, None]
    left = min(W, max(0, int(np.ceil(-shift_H.min()))))
    right = min(W, max(0, int(np.ceil(shift_H.max()))))
    for strip in (slice(0, left), slice(W - right, W)):  # nothing else can come from outside
        outside = (centre_HW[:, strip] < 0) | (centre_HW[:, strip] >= W)
        columns = slice(strip.start * C, strip.stop * C)
        np.copyto(moved[:, columns], level[columns], where=outside.repeat(C, axis=1))


# The signatures below are those of timm's operations, which they stand in for.


def shear_x(image: Image.Image, factor: float, *, fillcolor: Sequence[int], **_: object) -> Image.Image:
    """Output (x, y) takes the input at (x + factor y, y)."""
    return _slide(image, factor * (np.arange(image.height) + 0.5), fillcolor)


def shear_y(image: Image.Image, factor: float, *, fillcolor: Sequence[int], **_: object) -> Image.Image:
    """Output (x, y) takes the input at (x, y + factor x)."""
    return _turned(shear_x, image, factor, fillcolor)


def translate_x(image: Image.Image, share: float, *, fillcolor: Sequence[int], **_: object) -> Image.Image:
    """Output (x, y) takes the input at (x + share of the width, y)."""
    return _slide(image, np.full(image.height, share * image.width), fillcolor)


def translate_y(image: Image.Image, share: float, *, fillcolor: Sequence[int], **_: object) -> Image.Image:
    """Output (x, y) takes the input at (x, y + share of the height)."""
    return _turned(translate_x, image, share, fillcolor)


def _slide(image: Image.Image, shift_H: np.ndarray, fill: Sequence[int]) -> Image.Image:
    pixels = np.asarray(image)
    moved = slide_rows(pixels[..., None] if pixels.ndim == 2 else pixels, shift_H, fill)
    return Image.fromarray(moved[..., 0] if pixels.ndim == 2 else moved)


def _turned(operation: object, image: Image.Image, argument: float, fill: Sequence[int]) -> Image.Image:
    """The operation along the other axis."""
    assert callable(operation)
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    moved: Image.Image = operation(turned, argument, fillcolor=fill)
    return moved.transpose(Image.Transpose.TRANSPOSE)
