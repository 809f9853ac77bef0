"""Total batch = devices x device batch x accumulation, and the learning rate that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

from illama.errors import UserError
from illama.recipes.schema import Recipe


@dataclass(frozen=True)
class BatchPlan:
    """How an optimizer step is split.

    Attributes:
        device_batch: Images that one device holds at a time.
        accumulation: Micro-batches per optimizer step and device.
        total_batch: Images per optimizer step, all devices together.
        lr: Highest learning rate at this total batch.
        num_devices: Devices that share a step.
        draw_batch: Images that share one set of random draws (augmentation, mixing, drop path). The recipe alone
            decides it, never the number of devices: `device_batch` where the recipe names one, else what one device
            would hold, of which each of several takes an equal share. (Mixing pairs images, so an odd share cannot be
            kept apart from the others; it has draws of its own.)
    """

    device_batch: int
    accumulation: int
    total_batch: int
    lr: float
    num_devices: int = 1
    draw_batch: int = 0

    def __post_init__(self) -> None:
        if not self.draw_batch:
            object.__setattr__(self, "draw_batch", self.device_batch)


def plan_batches(recipe: Recipe, num_devices: int = 1) -> BatchPlan:
    """Split the recipe's total batch over devices and micro-batches.

    What `train.device_batch` and `train.accumulation` leave open is derived so that the total is exact. Where both
    are given and make another total, or where the learning rate belongs to another total, `optimizer.lr_scaling`
    has to say what happens to the learning rate; nothing is scaled silently.

    Raises:
        UserError: The totals differ and `optimizer.lr_scaling` is null, or the total does not split evenly.
    """
    if num_devices < 1:
        raise ValueError(f"num_devices: allowed: at least 1, given {num_devices}")
    device_batch, accumulation = _split(recipe, num_devices)
    total = num_devices * device_batch * accumulation
    optimizer = recipe.optimizer
    if total != recipe.train.total_batch and optimizer.lr_scaling is None:
        raise UserError(_other_total(recipe, num_devices, device_batch, accumulation))
    if total != optimizer.lr_batch and optimizer.lr_scaling is None:
        raise UserError(
            f"train.total_batch is {total}, but optimizer.lr {optimizer.lr:g} belongs to a total batch of "
            f"{optimizer.lr_batch}; type {_scaling_choices(recipe, total)}"
        )
    lr = _linear(recipe, total) if optimizer.lr_scaling == "linear" else optimizer.lr
    if lr < optimizer.min_lr:
        raise UserError(f"optimizer.lr scaled to {lr:g} is below optimizer.min_lr {optimizer.min_lr:g}; lower min_lr")
    shared = recipe.train.device_batch is None and device_batch % 2 == 0
    draw_batch = total // accumulation if shared else device_batch
    return BatchPlan(device_batch, accumulation, total, lr, num_devices, draw_batch)


def train_image_count(recipe: Recipe) -> int | None:
    """Training images as far as the recipe knows: the published number, cut by the recipe's own limits."""
    data = recipe.data
    if data.num_train_images is None:
        return None
    left = data.num_train_images - round(data.num_train_images * data.val_fraction)
    return left if data.max_train_images is None else min(left, data.max_train_images)


def _split(recipe: Recipe, num_devices: int) -> tuple[int, int]:
    """(device batch, accumulation), what is missing derived from the total batch."""
    train = recipe.train
    if train.device_batch is not None and train.accumulation is not None:
        return train.device_batch, train.accumulation
    given = num_devices * (train.device_batch or train.accumulation or 1)
    if train.total_batch % given:
        raise UserError(_uneven(recipe, num_devices, given))
    rest = train.total_batch // given
    if train.device_batch is not None:
        return train.device_batch, rest
    return rest, train.accumulation or 1


def _uneven(recipe: Recipe, num_devices: int, given: int) -> str:
    train = recipe.train
    named = "device_batch" if train.device_batch is not None else "accumulation"
    value = train.device_batch or train.accumulation or 1
    split = f"{_devices(num_devices)} x train.{named} {value} = {given}"
    if train.total_batch % num_devices == 0:
        fits = _nearest_divisor(train.total_batch // num_devices, value)
        return f"train.total_batch {train.total_batch} is not a multiple of {split}; type train.{named}={fits}"
    total = max(1, round(train.total_batch / given)) * given
    return (
        f"train.total_batch {train.total_batch} is not a multiple of {split}; type train.total_batch={total} with "
        f"{_scaling_choices(recipe, total)}"
    )


def _other_total(recipe: Recipe, num_devices: int, device_batch: int, accumulation: int) -> str:
    total, wanted = num_devices * device_batch * accumulation, recipe.train.total_batch
    text = (
        f"{_devices(num_devices)} x train.device_batch {device_batch} x train.accumulation {accumulation} = {total}, "
        f"but train.total_batch is {wanted}; "
    )
    if wanted % (num_devices * device_batch) == 0:
        text += f"type train.accumulation={wanted // (num_devices * device_batch)} for {wanted}, or "
    return text + f"for {total}: type {_scaling_choices(recipe, total)}"


def _scaling_choices(recipe: Recipe, total: int) -> str:
    return (
        f"optimizer.lr_scaling=linear (lr {_linear(recipe, total):g}) or optimizer.lr_scaling=none "
        f"(lr stays {recipe.optimizer.lr:g})"
    )


def _devices(count: int) -> str:
    return f"{count} device{'s' if count > 1 else ''}"


def _linear(recipe: Recipe, total: int) -> float:
    return recipe.optimizer.lr * total / recipe.optimizer.lr_batch


def _nearest_divisor(number: int, wanted: int) -> int:
    divisors = [value for value in range(1, number + 1) if number % value == 0]
    return min(divisors, key=lambda value: abs(value - wanted))
