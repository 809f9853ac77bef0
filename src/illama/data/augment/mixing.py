"""Mixup and cutmix of whole batches, with label smoothing folded into the soft targets (timm's "batch" mode)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from illama.recipes.schema import AugmentConfig


@dataclass(frozen=True)
class Mix:
    """How one batch is mixed with its own reverse.

    Attributes:
        share: How much of the first image stays, lambda, 0 to 1.
        box: (top, bottom, left, right) that cutmix pastes; None for mixup.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """Settings of mixup (Zhang et al., 2017) and cutmix (Yun et al., 2019).

    Attributes:
        mixup: Alpha of mixup's Beta distribution; 0 is off.
        cutmix: Alpha of cutmix's Beta distribution; 0 is off. One of the two must be on.
        prob: Probability that a batch is mixed.
        switch_prob: Probability of cutmix where both are on.
        label_smoothing: Share of the target spread over all classes, before mixing.
        num_classes: Width of the soft targets.
    """

    mixup: float
    cutmix: float
    prob: float
    switch_prob: float
    label_smoothing: float
    num_classes: int

    @classmethod
    def of(cls, augment: AugmentConfig, num_classes: int) -> Mixing | None:
        """The recipe's mixing; None when both kinds are off."""
        if not augment.mixes:
            return None
        return cls(
            augment.mixup,
            augment.cutmix,
            augment.mix_prob,
            augment.mix_switch_prob,
            augment.label_smoothing,
            num_classes,
        )

    def draw(self, generator: np.random.Generator, height: int, width: int) -> Mix:
        """Choose how to mix one batch of height x width images."""
        if generator.random() >= self.prob:
            return Mix(1.0)
        use_cutmix = self.cutmix > 0 and (self.mixup <= 0 or generator.random() < self.switch_prob)
        alpha = self.cutmix if use_cutmix else self.mixup
        share = float(generator.beta(alpha, alpha))
        if not use_cutmix:
            return Mix(share)
        center = int(generator.integers(height)), int(generator.integers(width))
        box = cut_box(height, width, share, *center)
        area = (box[1] - box[0]) * (box[3] - box[2])
        return Mix(1 - area / (height * width), box)  # the border may have cut the box

    def apply(self, images: torch.Tensor, labels: torch.Tensor, mix: Mix) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix a batch; image i with image B - 1 - i.

        Args:
            images: Normalised images (B, C, H, W) float; cutmix overwrites them.
            labels: (B,) int64.
            mix: What `draw` chose.

        Returns:
            (images, soft targets (B, num_classes) float32).
        """
        if mix.box is not None:
            top, bottom, left, right = mix.box
            images[:, :, top:bottom, left:right] = images[:, :, top:bottom, left:right].flip(0)
        elif mix.share < 1:
            images = images.mul(mix.share).add_(images.flip(0), alpha=1 - mix.share)
        targets = smooth_one_hot(labels, self.num_classes, self.label_smoothing)
        if mix.share < 1:
            targets = targets * mix.share + targets.flip(0) * (1 - mix.share)
        return images, targets


def cut_box(height: int, width: int, share: float, center_y: int, center_x: int) -> tuple[int, int, int, int]:
    """Cutmix's box of area (1 - share) around a centre, cut at the border: (top, bottom, left, right)."""
    side = math.sqrt(1 - share)
    cut_h, cut_w = int(height * side), int(width * side)
    top, bottom = center_y - cut_h // 2, center_y + (cut_h + 1) // 2
    left, right = center_x - cut_w // 2, center_x + (cut_w + 1) // 2
    return max(top, 0), min(bottom, height), max(left, 0), min(right, width)


def smooth_one_hot(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Targets (B, num_classes) float32: `smoothing` spread evenly, the rest on the label."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
