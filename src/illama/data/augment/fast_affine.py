"""Shears and translations of one image: Pillow's bicubic `Image.transform(AFFINE)` to one level, several times as fast.

Each row (or column) moves as a whole by its own fraction of a pixel, so four weights serve all of it; Pillow computes
sixteen products for every pixel and channel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

_TAPS = 4


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
    weights = _weights(torch.from_numpy(shift_H - whole).float()[:, None])
    total = rows[:, : W * C] * weights[0]
    for tap in range(1, _TAPS):
        total.addcmul_(rows[:, tap * C : (tap + W) * C], weights[tap])
    moved = total.clamp_(0, 255).numpy().astype(np.uint8)  # cut to whole levels, as Pillow does
    _fill_outside(moved, shift_H, np.tile(np.asarray(fill, np.uint8), W), C)
    return moved.reshape(H, W, C)


def _weights(t: torch.Tensor) -> list[torch.Tensor]:
    """Weights of the four neighbours at the fraction t, from the one before; Pillow's kernel, a = -1."""
    return [-t + 2 * t**2 - t**3, 1 - 2 * t**2 + t**3, t + t**2 - t**3, -(t**2) + t**3]


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
