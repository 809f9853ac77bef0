"""Augmentation of whole uint8 batches on their device, for image sets in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from illama.data.randaugment import Layer, RandAugment, apply_layer, draw_jitter
from illama.data.warp import rotation, warp

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe


@dataclass(frozen=True)
class BatchedAugment:
    """Padded crop, flip, rotation, then RandAugment or colour jitter.

    Attributes:
        padding: Black pixels added on each side before the crop back to size; 0 does not shift.
        hflip: Probability of a horizontal flip.
        rotate: Largest turn in degrees, either way.
        randaugment: Settings, or None.
        color_jitter: Strength; 0 is off.
        fill: Level of each channel where RandAugment's geometry finds no image (the data's mean).
    """

    padding: int = 0
    hflip: float = 0.0
    rotate: float = 0.0
    randaugment: RandAugment | None = None
    color_jitter: float = 0.0
    fill: tuple[int, ...] = (128, 128, 128)

    @classmethod
    def of(cls, recipe: Recipe, crop: str) -> BatchedAugment:
        """The recipe's augmentation for a `crop` of "pad" or "none"."""
        augment = recipe.augment
        return cls(
            padding=augment.crop_padding if crop == "pad" else 0,
            hflip=augment.hflip,
            rotate=augment.rotate,
            randaugment=RandAugment.parse(augment.randaugment) if augment.randaugment else None,
            # timm leaves the jitter out beside RandAugment
            color_jitter=0.0 if augment.randaugment else augment.color_jitter,
            fill=tuple(min(255, round(255 * mean)) for mean in recipe.data.mean),
        )

    def __call__(self, images: Tensor, generator: torch.Generator, rows: Tensor | None = None, of: int = 0) -> Tensor:
        """Augment a batch.

        Args:
            images: (B, C, H, W) uint8, any device.
            generator: A CPU generator; decides everything.
            rows: Places of the images in the larger batch that the numbers are drawn for, (B,) int64; None for a batch
                of its own.
            of: Size of that larger batch.

        Returns:
            (B, C, H, W) uint8.
        """
        n, (channels, height, width) = of if rows is not None else len(images), images.shape[1:]
        here = slice(None) if rows is None else rows
        if self.padding:
            top, left = torch.randint(2 * self.padding + 1, (2, n), generator=generator)[:, here]
            images = shift(images, self.padding, top, left)
        if self.hflip > 0:
            flipped = (torch.rand(n, generator=generator)[here] < self.hflip).to(images.device)
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        if self.rotate > 0:
            degrees = self.rotate * (2 * torch.rand(n, generator=generator)[here] - 1)
            turn = rotation(degrees, height, width).to(images.device)
            images = warp(images, turn, (0,) * channels, taps=2)
        layers = self.randaugment.draw(n, generator) if self.randaugment else []
        if self.color_jitter > 0:
            layers = draw_jitter(self.color_jitter, n, generator)
        for layer in layers:
            images = apply_layer(images, Layer(layer.op[here], layer.argument[here]), self.fill)
        return images


def shift(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with black (level 0, before normalisation) and crop back to size at each image's (top, left), (B,) int64."""
    n, _, height, width = images.shape
    top, left = top.to(images.device), left.to(images.device)
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops
    return windows[torch.arange(n, device=images.device), :, top, left]
