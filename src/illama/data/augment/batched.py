"""Augmentation of whole batches on their device: RandAugment, colour jitter, erasing, mixup and cutmix.

RandAugment (Cubuk et al., 2019) and colour jitter take uint8 batches of image sets in memory, with timm's operations,
levels and strings. Random erasing (Zhong et al., 2017) takes normalised ones, with timm's rules. Mixup and cutmix are
timm's "batch" mode, with label smoothing folded into the soft targets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from illama.data.augment import image_ops
from illama.data.augment.image_ops import rotation, warp
from illama.data.rng import Draws

if TYPE_CHECKING:
    from illama.recipes.schema import AugmentConfig, Recipe


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
# timm's defaults: area of all boxes together as a share of the image, least aspect, attempts to fit a box.
MIN_AREA, MAX_AREA = 0.02, 1 / 3
MIN_ASPECT = 0.3
ATTEMPTS = 10
# Odd multipliers and shifts of SplitMix64 (Steele, Lea and Flood, 2014), as signed numbers of 64 bits.
_STEP, _MIX = -7046029254386353131, ((30, -4658895280553007687), (27, -7723592293110705685))


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
        """Read timm's spelling: rand-m9-mstd0.5-inc1; n (operations), p and mmax may follow. The recipe's schema has
        refused every other text."""
        keys: dict[str, tuple[str, Callable[[str], float]]] = {
            "m": ("magnitude", float),
            "n": ("layers", int),
            "p": ("prob", float),
            "mstd": ("magnitude_std", float),
            "mmax": ("magnitude_max", float),
            "inc": ("increasing", lambda value: bool(int(value))),
        }
        settings: dict[str, Any] = {}
        for key, value in re.findall(r"-([a-z]+)([0-9.]+)", text):
            field, read = keys[key]
            settings[field] = read(value)
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
