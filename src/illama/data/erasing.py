"""Random erasing (Zhong et al., 2017) of normalised batches, on their device, with timm's rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from illama.recipes.schema import AugmentConfig

# timm's defaults: area of all boxes together as a share of the image, least aspect, attempts to fit a box.
MIN_AREA, MAX_AREA = 0.02, 1 / 3
MIN_ASPECT = 0.3
ATTEMPTS = 10


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

    def boxes(self, n: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
        """Draw (n, count, 4) boxes as (top, bottom, left, right); empty ones where nothing is erased."""
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

    def __call__(
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        noise: Callable[[int], torch.Generator],
        rows: torch.Tensor | None = None,
        of: int = 0,
    ) -> torch.Tensor:
        """Erase in place.

        Args:
            images: Normalised images (B, C, H, W), any device.
            generator: A CPU generator; decides the boxes.
            noise: For an image's place a generator of the images' device; decides what fills its boxes.
            rows: Places of the images in the larger batch that the boxes are drawn for, (B,) int64; None for a batch
                of its own.
            of: Size of that larger batch.
        """
        channels, height, width = images.shape[1:]
        places = torch.arange(len(images)) if rows is None else rows
        boxes = self.boxes(len(images) if rows is None else of, height, width, generator)[places]
        for i in torch.nonzero((boxes[..., 1] > boxes[..., 0]).any(1))[:, 0].tolist():
            source = noise(int(places[i]))
            for top, bottom, left, right in boxes[i].tolist():
                area = images[i, :, top:bottom, left:right]
                if self.mode == "const":
                    area.zero_()
                    continue
                shape = area.shape if self.mode == "pixel" else (channels, 1, 1)
                # drawn apart and copied: several times as fast on a CPU as drawing into rows of the image
                area.copy_(torch.randn(shape, generator=source, device=images.device))
        return images
