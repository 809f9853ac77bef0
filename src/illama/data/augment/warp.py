"""Affine transforms of uint8 batches that agree with Pillow's `Image.transform(AFFINE)`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

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
