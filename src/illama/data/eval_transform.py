"""The evaluation transform, which travels with the weights, and normalisation on the device."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from PIL import Image

from illama.console.text import shown
from illama.data.decode.images import as_seen, check_channels
from illama.data.loading.batch import constant
from illama.errors import UserError
from illama.models.config import LEAST_CROP, LEAST_STD, MOST_PIXELS, SMALL_PX, WARP_PX
from illama.recipes.schema import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe

EvalMode = Literal["crop", "warp", "none", "warp_crop"]
MODES: tuple[EvalMode, ...] = ("crop", "warp", "none", "warp_crop")
Interpolation = Literal["bicubic", "bilinear"]
RESAMPLING: dict[str, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
}

# Up to this many times the target's area an image is resized whole before it is cropped.
MAX_GROWTH = 8


@dataclass(frozen=True)
class EvalTransform:
    """How evaluation and prediction look at an image.

    Attributes:
        img_size: (height, width) of the model's input in pixels.
        crop_pct: Share of the resized shorter side that the centre crop keeps; for modes "crop" and "warp_crop".
        mean: Mean of each channel, of values from 0 to 1.
        std: Deviation of each channel.
        mode: "crop" (resize the shorter side to floor(size / crop_pct), crop the centre), "warp" (resize both
            sides, changing the aspect), "none" (the image has the size already; another one is resized so
            that it just covers the input, and its centre cropped) or "warp_crop" (resize both sides to
            floor(size / crop_pct), crop the centre: Hugging Face's DeiT).
        in_chans: 1 (grey) or 3 (RGB).
        interpolation: "bicubic" (published) or "bilinear" (Hugging Face's ViT).
    """

    img_size: tuple[int, int]
    crop_pct: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    mode: EvalMode = "crop"
    in_chans: int = 3
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_channels(self.in_chans)
        if self.interpolation not in RESAMPLING:
            raise UserError(f"interpolation {self.interpolation!r} is not one of {', '.join(RESAMPLING)}")
        if self.mode not in MODES:
            raise UserError(f"evaluation mode {self.mode!r} is not one of {', '.join(MODES)}")
        values = (self.crop_pct, *self.mean, *self.std)
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise UserError(f"crop_pct, mean and std are to be finite numbers; given {values}")
        if not LEAST_CROP <= self.crop_pct <= 1 or any(value < LEAST_STD for value in self.std):
            raise UserError(
                f"crop_pct {self.crop_pct} is to be from {LEAST_CROP} to 1, and std {self.std} at least {LEAST_STD}"
            )
        sides = self.img_size
        if len(sides) != 2 or not all(type(side) is int and 1 <= side <= MOST_PIXELS for side in sides):
            raise UserError(f"img_size {shown(sides, 60)} is no height and width of 1 to {MOST_PIXELS} pixels")
        if len(self.mean) != self.in_chans or len(self.std) != self.in_chans:
            raise UserError(
                f"data.mean and data.std have {len(self.mean)} and {len(self.std)} values; "
                f"model.in_chans {self.in_chans} needs as many"
            )

    @classmethod
    def of(cls, recipe: Recipe) -> EvalTransform:
        """The recipe's own: nothing up to 32 px, a warp from 384 px on, resize and centre crop between."""
        size, data = recipe.model.height_width, recipe.data
        mode = standard_mode(size)
        return cls(size, data.crop_pct, tuple(data.mean), tuple(data.std), mode, recipe.model.in_chans)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """The model's view of an image: (C, H, W) uint8."""
        return to_tensor(self.geometry(as_seen(image, self.in_chans)))

    def geometry(self, image: Image.Image) -> Image.Image:
        """Resize and crop only."""
        height, width = self.img_size
        if image.size == (width, height) and self.mode in ("warp", "none"):
            return image
        if self.mode == "warp":
            return image.resize((width, height), RESAMPLING[self.interpolation])
        if self.mode == "warp_crop":
            full_w, full_h = math.floor(width / self.crop_pct), math.floor(height / self.crop_pct)
            left, top = round((full_w - width) / 2), round((full_h - height) / 2)
            whole = image.resize((full_w, full_h), RESAMPLING[self.interpolation])
            return whole.crop((left, top, left + width, top + height))
        return cover(image, self.img_size, self.crop_pct if self.mode == "crop" else 1.0, self.interpolation)

    def normalize(
        self, images: torch.Tensor, device: torch.device | str, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """uint8 images (B, C, H, W) as the model's input on `device`: (x / 255 - mean) / std, in `dtype`."""
        return normalize(images.to(device, non_blocking=True), self.mean, self.std).to(dtype)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` restores it."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> EvalTransform:
        """Inverse of `to_dict`.

        Raises:
            UserError: Fields are missing, unknown, or not what they may be.
        """
        values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in plain.items()}
        try:
            return cls(**values)
        except TypeError as error:
            raise UserError(f"the evaluation transform of the weights cannot be read: {error}") from None


def standard_mode(size: tuple[int, int]) -> EvalMode:
    """How the published networks and ours look at images, by the (height, width) of the network's input."""
    return "none" if max(size) <= SMALL_PX else "warp" if max(size) >= WARP_PX else "crop"


def cover(
    image: Image.Image, size: tuple[int, int], crop_pct: float = 1.0, interpolation: Interpolation = "bicubic"
) -> Image.Image:
    """Resize so that the image covers floor(size / crop_pct), and crop the centre of `size`.

    Args:
        image: Any size of at least 1 x 1.
        size: (height, width) of the result.
        crop_pct: Share of the resized image that is kept along its tighter side.
        interpolation: How pixels are resampled.
    """
    resampling = RESAMPLING[interpolation]
    height, width = size
    target_h, target_w = math.floor(height / crop_pct), math.floor(width / crop_pct)
    if target_h == target_w:  # the longer side is cut to whole pixels, as in the published transform
        short = min(image.size)
        full_w, full_h = (target_w * side // short for side in image.size)
    else:
        ratio = min(image.width / target_w, image.height / target_h)
        full_w, full_h = round(image.width / ratio), round(image.height / ratio)
    left, top = round((full_w - width) / 2), round((full_h - height) / 2)
    if full_w * full_h <= MAX_GROWTH * target_w * target_h:
        whole = image.resize((full_w, full_h), resampling)
        return whole.crop((left, top, left + width, top + height))
    # A 4000 x 20 panorama would become 51200 x 256: compute only what the crop keeps. Pillow holds the box in
    # float32, so values may differ by a level or two from the long way; hence not for ordinary shapes.
    step_x, step_y = image.width / full_w, image.height / full_h
    right = min((left + width) * step_x, image.width)
    bottom = min((top + height) * step_y, image.height)
    return image.resize((width, height), resampling, box=(left * step_x, top * step_y, right, bottom))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """An 8-bit image as (C, H, W) uint8."""
    values = torch.from_numpy(np.array(image))  # a copy: Pillow's own memory is read-only
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1).contiguous()


def normalize(images: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """(x / 255 - mean) / std of uint8 images (B, C, H, W), float32 on their device."""
    mean_C11 = constant(tuple(mean), torch.float32, images.device).view(-1, 1, 1) * 255
    scale_C11 = 1 / (constant(tuple(std), torch.float32, images.device).view(-1, 1, 1) * 255)
    if images.device.type != "cpu":
        return images.float().sub_(mean_C11).mul_(scale_C11)
    # The same, an image at a time while it is in the cache, and without torch's threads: decoding has the other cores.
    # In torch's memory: numpy's begins at any 16 bytes, and matrix products round by how their factors are aligned.
    normalized = torch.empty(images.shape)
    for image, out in zip(images.numpy(), normalized.numpy(), strict=True):
        out[...] = image
        out -= mean_C11.numpy()
        out *= scale_C11.numpy()
    return normalized
