"""Augmentation of whole uint8 batches on their device, for image sets in memory; RandAugment and colour jitter of them.

RandAugment (Cubuk et al., 2019) has timm's operations, levels and strings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from illama.data.augment import image_ops
from illama.data.augment.image_ops import rotation, warp
from illama.data.rng import Draws
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import Recipe


# timm's scale of magnitudes: 10 is the full effect.
FULL = 10.0

PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "auto_contrast": image_ops.auto_contrast,
    "equalize": image_ops.equalize,
    "invert": image_ops.invert,
}
COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "posterize": image_ops.posterize,
    "solarize": image_ops.solarize,
    "solarize_add": image_ops.solarize_add,
    "color": image_ops.color,
    "contrast": image_ops.contrast,
    "brightness": image_ops.brightness,
    "sharpness": image_ops.sharpness,
}
GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
OPS = (*PLAIN, *COLOUR, *GEOMETRY)
ENHANCE = ("color", "contrast", "brightness", "sharpness")


@dataclass(frozen=True)
class Layer:
    """One operation per image.

    Attributes:
        op: Position in OPS, -1 to leave the image alone, (B,) int64.
        argument: Degrees, bits, threshold, factor, ..., (B,) float32; ignored by operations without one.
    """

    op: Tensor
    argument: Tensor


class Part(NamedTuple):
    """One operation for the images that a layer gives it to.

    Attributes:
        name: Of the operation; "geometry" for all of GEOMETRY.
        rows: Which images, (b,) int64.
        argument: (b,) float32; (b, 6) float32 output-to-input matrices for geometry.
    """

    name: str
    rows: Tensor
    argument: Tensor


def in_parts(layer: Layer, height: int, width: int) -> list[Part]:
    """A layer by operations, those alone that an image has."""
    parts = []
    for number, name in enumerate((*PLAIN, *COLOUR)):
        rows = torch.nonzero(layer.op == number)[:, 0]
        if len(rows):
            parts.append(Part(name, rows, layer.argument[rows]))
    rows = torch.nonzero(layer.op >= len(PLAIN) + len(COLOUR))[:, 0]
    if len(rows):
        parts.append(Part("geometry", rows, _matrices(layer.op[rows], layer.argument[rows], height, width)))
    return parts


def apply_parts(images: Tensor, parts: Sequence[Part], fill: Sequence[int]) -> Tensor:
    """Apply to each image its operation.

    Args:
        images: (B, C, H, W) uint8.
        parts: Of one layer, on the images' device.
        fill: Level of each channel where geometry finds no image.
    """
    images = images.clone()
    for name, rows, argument in parts:
        if name in PLAIN:
            images[rows] = PLAIN[name](images[rows])
        elif name in COLOUR:
            images[rows] = COLOUR[name](images[rows], argument)
        else:
            images[rows] = warp(images[rows], argument, fill)
    return images


def _matrices(op: Tensor, argument: Tensor, height: int, width: int) -> Tensor:
    """Output-to-input matrices (B, 6) of the geometric operations."""
    matrices = rotation(torch.where(op == OPS.index("rotate"), argument, 0), height, width)
    for name, column, scale in (
        ("shear_x", 1, 1),
        ("shear_y", 3, 1),
        ("translate_x", 2, width),
        ("translate_y", 5, height),
    ):
        matrices[:, column] += torch.where(op == OPS.index(name), argument * scale, 0)
    return matrices


@dataclass(frozen=True)
class RandAugment:
    """Random operations of one strength.

    Attributes:
        magnitude: Mean strength, 0 to 10.
        layers: Operations per image.
        prob: Probability of each.
        magnitude_std: Deviation of the strength; infinite draws it uniformly from 0 to `magnitude`.
        magnitude_max: Upper bound of the strength.
        increasing: Whether every operation gets stronger with the magnitude.
    """

    magnitude: float = FULL
    layers: int = 2
    prob: float = 0.5
    magnitude_std: float = 0.0
    magnitude_max: float = FULL
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> RandAugment:
        """Read timm's spelling: rand-m9-mstd0.5-inc1; n (operations), p and mmax may follow.

        Raises:
            UserError: The string has a part that batches do not know.
        """
        keys: dict[str, tuple[str, Callable[[str], float]]] = {
            "m": ("magnitude", float),
            "n": ("layers", int),
            "p": ("prob", float),
            "mstd": ("magnitude_std", float),
            "mmax": ("magnitude_max", float),
            "inc": ("increasing", lambda value: bool(int(value))),
        }
        name, *parts = text.split("-")
        settings: dict[str, Any] = {}
        for part in parts:
            match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
            if name != "rand" or match is None or match[1] not in keys:
                raise UserError(
                    f"augment.randaugment {text!r}: {part!r} is unknown for images in memory; allowed: rand with "
                    f"-{', -'.join(keys)} and a number; data.storage=stream hands the string to timm"
                )
            field, read = keys[match[1]]
            settings[field] = read(match[2])
        if settings.get("magnitude_std", 0) > 100:
            settings["magnitude_std"] = math.inf
        return cls(**settings)

    def draw(self, draws: Draws) -> list[Layer]:
        """Choose operations and strengths."""
        return [self._draw_layer(draws) for _ in range(self.layers)]

    def _draw_layer(self, draws: Draws) -> Layer:
        op = draws.take(lambda n, g: torch.randint(len(OPS), (n,), generator=g))
        acts = draws.take(_uniform) < self.prob
        if math.isinf(self.magnitude_std):
            level = self.magnitude * draws.take(_uniform)
        else:
            level = self.magnitude + self.magnitude_std * draws.take(lambda n, g: torch.randn(n, generator=g))
        level = level.clamp(0, self.magnitude_max) / FULL
        sign = torch.where(draws.take(_uniform) > 0.5, -1.0, 1.0)
        argument = torch.zeros(len(op))
        for number, name in enumerate(OPS):
            argument = torch.where(op == number, self._argument(name, level, sign), argument)
        return Layer(torch.where(acts, op, -1), argument)

    def _argument(self, name: str, level: Tensor, sign: Tensor) -> Tensor:
        """The operation's own unit for a relative level (1 is the full effect)."""
        if name in ENHANCE:
            return (1 + sign * level * 0.9).clamp(min=0.1) if self.increasing else level * 1.8 + 0.1
        if name == "posterize":
            bits = torch.floor(level * 4)
            return (4 - bits).clamp(min=0) if self.increasing else bits
        if name == "solarize":
            threshold = torch.floor(level * 256).clamp(max=256)
            return 256 - threshold if self.increasing else threshold
        if name == "solarize_add":
            return torch.floor(level * 110).clamp(max=128)
        full = {"rotate": 30.0, "shear_x": 0.3, "shear_y": 0.3, "translate_x": 0.45, "translate_y": 0.45}
        return sign * level * full.get(name, 0.0)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, generator=generator)


def draw_jitter(strength: float, draws: Draws) -> list[Layer]:
    """Brightness, contrast and saturation by factors from 1 - strength to 1 + strength, in a random order."""
    ops = torch.tensor([OPS.index(name) for name in ("brightness", "contrast", "color")])
    order = draws.take(lambda n, g: torch.rand(3, n, generator=g), dim=1).argsort(0)
    low = max(0.0, 1 - strength)
    factor = low + (1 + strength - low) * draws.take(lambda n, g: torch.rand(3, n, generator=g), dim=1)
    return [Layer(ops[order[k]], factor[k]) for k in range(3)]


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
