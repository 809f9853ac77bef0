"""Augmentation of whole uint8 batches on their device, for image sets in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from illama.data.augment.image_ops import rotation, warp
from illama.data.augment.randaugment import Part, RandAugment, apply_parts, draw_jitter, in_parts
from illama.data.rng import Draws

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe


class AugmentPlan(NamedTuple):
    """What happens to each image of a batch; a step that is off is None.

    Attributes:
        corner: Top and left of the crop from the padded image, (2, B) int64.
        flipped: (B,) bool.
        turn: Output-to-input matrices, (B, 6) float32.
        layers: Operations, one layer after the other.
    """

    corner: Tensor | None
    flipped: Tensor | None
    turn: Tensor | None
    layers: list[list[Part]]


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

    def draw(self, draws: Draws, height: int, width: int) -> AugmentPlan:
        """Decide what happens to images of height x width, on the CPU."""
        corner = flipped = turn = None
        if self.padding:
            corner = draws.take(lambda n, g: torch.randint(2 * self.padding + 1, (2, n), generator=g), dim=1)
        if self.hflip > 0:
            flipped = draws.take(lambda n, g: torch.rand(n, generator=g)) < self.hflip
        if self.rotate > 0:
            degrees = self.rotate * (2 * draws.take(lambda n, g: torch.rand(n, generator=g)) - 1)
            turn = rotation(degrees, height, width)
        layers = self.randaugment.draw(draws) if self.randaugment else []
        if self.color_jitter > 0:
            layers = draw_jitter(self.color_jitter, draws)
        return AugmentPlan(corner, flipped, turn, [in_parts(layer, height, width) for layer in layers])

    def apply(self, images: Tensor, plan: AugmentPlan) -> Tensor:
        """Augment a batch (B, C, H, W) uint8 by a plan that lies on its device; the result has the same shape."""
        if plan.corner is not None:
            images = shift(images, self.padding, *plan.corner)
        if plan.flipped is not None:
            images = torch.where(plan.flipped[:, None, None, None], images.flip(-1), images)
        if plan.turn is not None:
            images = warp(images, plan.turn, (0,) * images.shape[1], taps=2)
        for parts in plan.layers:
            images = apply_parts(images, parts, self.fill)
        return images


def shift(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad with black (level 0, before normalisation) and crop back to size at each image's (top, left).

    Both are (B,) int64 on the images' device.
    """
    n, _, height, width = images.shape
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view of all crops
    return windows[torch.arange(n, device=images.device), :, top, left]
