"""What training does to one image in a worker process: crop, and on CPU runs flip, rotation, RandAugment, jitter.

Where there is a device the rest happens there, to whole batches (`batched`).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from illama.data.augment import image_ops
from illama.data.decode.lazy_image import Picture, ResizedCrop
from illama.data.eval_transform import cover, to_tensor
from illama.optional import import_timm

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe

Crop = Callable[[Picture], torch.Tensor]
Operation = Callable[[Image.Image], Image.Image]

# timm's operations that have a faster equal.
_FASTER: dict[str, Callable[..., Image.Image]] = {
    "ShearX": image_ops.shear_x,
    "ShearY": image_ops.shear_y,
    "TranslateXRel": image_ops.translate_x,
    "TranslateYRel": image_ops.translate_y,
}


@dataclass(frozen=True)
class TrainTransform:
    """A picture as training sees it. Draws from Python's, numpy's and torch's global generators.

    Attributes:
        shape: (C, H, W) of the result.
        crop: Brings the picture to size, (C, H, W) uint8.
        hflip: Probability of a horizontal flip.
        operations: What follows, on a Pillow image.
    """

    shape: tuple[int, int, int]
    crop: Crop
    hflip: float = 0.0
    operations: tuple[Operation, ...] = ()

    def __call__(self, picture: Picture) -> torch.Tensor:
        """(C, H, W) uint8, of any memory order.

        Raises:
            BrokenImage: The picture cannot be read completely.
        """
        return self.finish(self.crop(picture))

    def finish(self, pixels: torch.Tensor) -> torch.Tensor:
        """What follows the crop: flip and operations, (C, H, W) uint8."""
        if self.hflip > 0 and random.random() < self.hflip:
            pixels = pixels.flip(-1)
        if not self.operations:
            return pixels
        image = _to_pillow(pixels)
        for operation in self.operations:
            image = operation(image)
        return _to_planes(image)


def train_transform(recipe: Recipe, crop: str, *, on_device: bool = False) -> TrainTransform:
    """The training transform of one image, up to uint8; erasing and mixing follow on the device.

    Args:
        recipe: Its `augment` section decides.
        crop: "resized", "pad" or "none".
        on_device: Leave all after the crop to the device, which does it to whole batches.
    """
    augment, size = recipe.augment, recipe.model.height_width
    cropping: Crop
    if crop == "resized":
        cropping = ResizedCrop(size, augment.crop_scale, augment.crop_ratio)
    else:
        cropping = PaddedCrop(size, augment.crop_padding if crop == "pad" else 0)
    shape = (recipe.model.in_chans, *size)
    if on_device:
        return TrainTransform(shape, cropping)
    turn = (Rotate(augment.rotate),) if augment.rotate > 0 else ()
    return TrainTransform(shape, cropping, augment.hflip, (*turn, *_colour_and_shape(recipe)))


def _colour_and_shape(recipe: Recipe) -> tuple[Operation, ...]:
    """timm's RandAugment or colour jitter as the recipe spells it."""
    if not recipe.augment.randaugment and not recipe.augment.color_jitter:
        return ()
    import_timm()
    from timm.data import create_transform

    size = (recipe.model.in_chans, *recipe.model.height_width)
    operations = create_transform(size, is_training=True, separate=True, **timm_options(recipe))[1].transforms
    for operation in operations:
        for op in getattr(operation, "ops", ()):
            if op.name in _FASTER and op.kwargs["resample"] == Image.Resampling.BICUBIC:
                op.aug_fn = _FASTER[op.name]
    return tuple(operations)


def timm_options(recipe: Recipe) -> dict[str, Any]:
    """The recipe's augmentation of single images in the words of timm's `create_transform` and `create_loader`."""
    augment, data = recipe.augment, recipe.data
    return {
        "scale": augment.crop_scale,
        "ratio": augment.crop_ratio,
        "hflip": augment.hflip,
        "color_jitter": augment.color_jitter,
        "auto_augment": augment.randaugment,
        "interpolation": "bicubic",
        "mean": tuple(data.mean),
        "std": tuple(data.std),
    }


@dataclass(frozen=True)
class PaddedCrop:
    """Random crop of `size` (height, width) after `padding` black pixels on each side; first resized to cover."""

    size: tuple[int, int]
    padding: int = 0

    def __call__(self, picture: Picture) -> torch.Tensor:
        image = fit(picture.image(), self.size)
        if self.padding:
            left, top = (random.randint(-self.padding, self.padding) for _ in range(2))
            image = image.crop((left, top, left + image.width, top + image.height))  # outside is black
        return to_tensor(image)


@dataclass(frozen=True)
class Rotate:
    """Turn by a random angle of at most `degrees`; uncovered corners are black."""

    degrees: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return image.rotate(random.uniform(-self.degrees, self.degrees), Image.Resampling.BILINEAR)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image itself where it has the (height, width) wanted, else resized to cover and cropped evenly."""
    return image if image.size == size[::-1] else cover(image, size)


def _to_pillow(pixels: torch.Tensor) -> Image.Image:
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def _to_planes(image: Image.Image) -> torch.Tensor:
    """(C, H, W) uint8. Pillow separates the channels of a row as it hands it out, which saves turning bytes about."""
    lines = bytearray(image.tobytes("raw", "RGB;L" if image.mode == "RGB" else image.mode))
    channels = len(image.getbands())
    return torch.frombuffer(lines, dtype=torch.uint8).view(image.height, channels, image.width).permute(1, 0, 2)
