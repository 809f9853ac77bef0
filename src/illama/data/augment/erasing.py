"""Random erasing (Zhong et al., 2017) of normalised batches, on their device, with timm's rules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from illama.data.rng import Draws

if TYPE_CHECKING:
    from illama.recipes.schema import AugmentConfig

# timm's defaults: area of all boxes together as a share of the image, least aspect, attempts to fit a box.
MIN_AREA, MAX_AREA = 0.02, 1 / 3
MIN_ASPECT = 0.3
ATTEMPTS = 10


class ErasingPlan(NamedTuple):
    """What is erased of each image of a batch.

    Attributes:
        boxes: (B, count, 4) int64, as (top, bottom, left, right); empty ones where nothing is erased.
        seeds: (B,) int64; they decide what fills the boxes.
    """

    boxes: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class RandomErasing:
    """Overwrites up to `count` boxes of some images.

    Attributes:
        prob: Probability that an image is erased.
        mode: "pixel" (standard normal noise), "rand" (one random colour per box) or "const" (zero, the mean).
        count: Most boxes per image.
    """

    prob: float
    mode: str
    count: int

    @classmethod
    def of(cls, augment: AugmentConfig) -> RandomErasing | None:
        """The recipe's erasing; None when it is off."""
        if augment.erase_prob <= 0:
            return None
        return cls(augment.erase_prob, augment.erase_mode, augment.erase_count)

    def draw(self, draws: Draws, height: int, width: int) -> ErasingPlan:
        """Decide what is erased of images of height x width, on the CPU."""
        boxes = draws.take(lambda n, g: self._boxes(n, height, width, g))
        return ErasingPlan(boxes, draws.take(lambda n, g: torch.randint(2**62, (n,), generator=g)))

    def _boxes(self, n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
        erased = torch.rand(n, generator=generator) < self.prob
        number = torch.randint(1, self.count + 1, (n, 1, 1), generator=generator)
        shape = (n, self.count, ATTEMPTS)
        share = MIN_AREA + (MAX_AREA - MIN_AREA) * torch.rand(shape, generator=generator)
        area = share * height * width / number
        aspect = torch.exp(math.log(MIN_ASPECT) * (2 * torch.rand(shape, generator=generator) - 1))
        h, w = torch.round(torch.sqrt(area * aspect)), torch.round(torch.sqrt(area / aspect))
        fits = (h < height) & (w < width)
        first = fits.float().argmax(-1, keepdim=True)  # the first attempt that fits
        h, w = h.gather(-1, first)[..., 0], w.gather(-1, first)[..., 0]
        top = torch.floor(torch.rand((n, self.count), generator=generator) * (height - h + 1))
        left = torch.floor(torch.rand((n, self.count), generator=generator) * (width - w + 1))
        used = erased[:, None] & fits.any(-1) & (torch.arange(self.count) < number[..., 0])
        boxes = torch.stack([top, top + h, left, left + w], -1).long()
        return boxes * used[..., None]

    def apply(self, images: Tensor, plan: ErasingPlan) -> Tensor:
        """Erase normalised images (B, C, H, W) by a plan that lies on their device; they may be overwritten."""
        _, channels, height, width = images.shape
        pixel = torch.arange(channels * height * width, device=images.device).view(channels, height, width)
        for k in range(self.count):
            top, bottom, left, right = (side[:, None] for side in plan.boxes[:, k].unbind(-1))
            y, x = pixel[0, :, 0] // width, pixel[0, 0]
            inside = ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
            if self.mode == "const":
                images = images.masked_fill_(inside[:, None], 0.0)
                continue
            if self.mode == "rand":  # a colour per box, beyond the numbers of the pixels
                place = (pixel.numel() + k * channels + torch.arange(channels, device=images.device)).view(-1, 1, 1)
            else:
                place = pixel
            if images.device.type != "cpu":
                noise = normal_at(plan.seeds[:, None, None, None], place)
                images = torch.where(inside[:, None], noise, images)
                continue
            # A twentieth of the pixels: where counting them makes nobody wait, the others need no noise.
            b, y, x = torch.nonzero(inside, as_tuple=True)
            at = place.expand(pixel.shape)[:, y, x]
            images[b, :, y, x] = normal_at(plan.seeds[b], at).T
        return images


# Odd multipliers and shifts of SplitMix64 (Steele, Lea and Flood, 2014), as signed numbers of 64 bits.
_STEP, _MIX = -7046029254386353131, ((30, -4658895280553007687), (27, -7723592293110705685))


def normal_at(seeds: Tensor, place: Tensor) -> Tensor:
    """Standard normal numbers as a function of (seed, place): the same for any batch and on any device.

    Args:
        seeds, place: int64, 0 or more; they are broadcast.

    Returns:
        float32. Box and Muller's transform of two halves of a mixed number; none is beyond 5.9.
    """
    number = seeds + (place + 1) * _STEP
    for shift, factor in _MIX:
        number = (number ^ _shifted(number, shift)) * factor
    number = number ^ _shifted(number, 31)
    first, second = ((_shifted(number, shift) & 0xFFFFFF).float().add_(0.5).mul_(2**-24) for shift in (40, 8))
    return first.log_().mul_(-2).sqrt_().mul_(second.mul_(2 * math.pi).cos_())


def _shifted(number: Tensor, by: int) -> Tensor:
    """A shift to the right that brings zeros in."""
    return (number >> by) & ((1 << (64 - by)) - 1)
