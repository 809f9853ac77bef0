"""Pairs of values that cannot stand together: one function per rule, all of them tried when a recipe loads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from illama.models.config import SMALL_PX

Check = Callable[..., str | None]
_RULES: list[tuple[tuple[str, ...], Check]] = []


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as {"section.key": value}; lists count as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def kept_patches(patches: int, rate: float) -> int:
    """How many of so many patches a training step keeps at this rate of dropping."""
    return patches - round(rate * patches)


def broken_rules(flat: Mapping[str, Any], ignore: Collection[str] = ()) -> list[tuple[str, str]]:
    """All rules that a recipe breaks.

    Args:
        flat: Every value by its dotted key.
        ignore: Keys whose values are wrong already; rules that read one of them are left out.

    Returns:
        (dotted key, what is wrong and what to do) for each broken rule.
    """
    broken = []
    for keys, check in _RULES:
        if all(key in flat and key not in ignore for key in keys):
            text = check(*(flat[key] for key in keys))
            if text is not None:
                broken.append((keys[0], text))
    return broken


def _rule(*keys: str) -> Callable[[Check], Check]:
    """The decorated function gets these keys' values and returns what is wrong with the first, or None."""

    def register(check: Check) -> Check:
        _RULES.append((keys, check))
        return check

    return register


@_rule("model.num_classes")
def _has_classes(num_classes: int | str) -> str | None:
    if isinstance(num_classes, str) or num_classes >= 2:
        return None
    return f"training needs classes to tell apart; allowed: at least 2, or auto for the data's, given {num_classes}"


@_rule("model.global_pool")
def _has_one_output(pool: str) -> str | None:
    return "the loss needs one output per image; allowed: token or avg" if pool == "" else None


@_rule("train.loss", "augment.mixup", "augment.cutmix")
def _loss_fits_targets(loss: str, mixup: float, cutmix: float) -> str | None:
    if loss == "cross_entropy" and (mixup > 0 or cutmix > 0):
        return (
            f"cross_entropy needs whole classes, but augment.mixup is {mixup} and augment.cutmix {cutmix}; "
            "set both to 0, or train.loss=auto"
        )
    return None


@_rule("augment.mix_prob", "augment.mixup", "augment.cutmix")
def _mixing_happens(prob: float, mixup: float, cutmix: float) -> str | None:
    if prob == 0 and (mixup > 0 or cutmix > 0):
        return "0 never mixes, but augment.mixup or augment.cutmix is above 0; set those to 0 instead"
    return None


@_rule("augment.color_jitter", "augment.randaugment")
def _jitter_happens(jitter: float, randaugment: str | None) -> str | None:
    if jitter > 0 and randaugment is not None:
        return "has no effect beside RandAugment; set it to 0, or augment.randaugment=null"
    return None


@_rule("augment.crop_scale")
def _scale_order(scale: list[float]) -> str | None:
    low, high = scale
    return None if 0 < low <= high <= 1 else f"allowed: [least, most] with 0 < least <= most <= 1, given {scale}"


@_rule("augment.crop_ratio")
def _ratio_order(ratio: list[float]) -> str | None:
    return None if ratio[0] <= ratio[1] else f"allowed: [least, most], given {ratio}"


@_rule("augment.crop", "augment.crop_padding", "model.img_size")
def _padding_fits(crop: str, padding: int, img_size: int | list[int]) -> str | None:
    if crop == "pad" and padding == 0:
        return "pad moves nothing with augment.crop_padding 0; set crop_padding, or augment.crop=none"
    if crop in ("pad", "auto") and padding >= _sides(img_size)[0] and _sides(img_size)[1] <= SMALL_PX:
        return f"augment.crop_padding {padding} can move the whole image of {_sides(img_size)[0]} px out of sight"
    return None


@_rule("schedule.warmup_epochs", "schedule.epochs")
@_rule("schedule.softness.cutoff_epochs", "schedule.epochs")
@_rule("schedule.drop_path.cutoff_epochs", "schedule.epochs")
@_rule("schedule.patch_drop.cutoff_epochs", "schedule.epochs")
@_rule("schedule.mixing.cutoff_epochs", "schedule.epochs")
def _ends_within_the_run(cutoff: int, epochs: int) -> str | None:
    return f"allowed: 0 to schedule.epochs ({epochs}), given {cutoff}" if cutoff > epochs else None


@_rule("schedule.softness.mode", "schedule.softness.shape", "schedule.softness.cutoff_epochs")
def _standard_softness_is_constant(mode: str, shape: str, cutoff: int) -> str | None:
    return _standard("softness", "softness", shape, cutoff) if mode == "standard" else None


@_rule("schedule.drop_path.mode", "schedule.drop_path.shape", "schedule.drop_path.cutoff_epochs")
def _drop_path_has_its_shape(mode: str, shape: str, cutoff: int) -> str | None:
    if mode == "standard":
        return _standard("the rate", "drop_path", shape, cutoff)
    if mode == "late" and shape == "linear":
        return "late starts at once; allowed with schedule.drop_path.shape=constant only"
    return None


def _standard(what: str, section: str, shape: str, cutoff: int) -> str | None:
    if shape == "constant" and cutoff == 0:
        return None
    keys = f"schedule.{section}.shape=constant schedule.{section}.cutoff_epochs=0"
    return f"standard keeps {what} for the whole run; add {keys}"


@_rule("schedule.patch_drop.cutoff_epochs", "schedule.patch_drop.rate", "schedule.epochs")
def _patch_drop_ends(cutoff: int, rate: float, epochs: int) -> str | None:
    if rate > 0 and cutoff == 0:
        return f"with schedule.patch_drop.rate {rate} allowed: 1 to schedule.epochs ({epochs}), given 0"
    return f"has no effect while schedule.patch_drop.rate is 0; given {cutoff}" if rate == 0 and cutoff > 0 else None


@_rule("schedule.patch_drop.rate", "model.img_size", "model.patch_size")
def _patch_drop_drops(rate: float, img_size: int | list[int], patch_size: int) -> str | None:
    shorter, longer = _sides(img_size)
    patches = (shorter // patch_size) * (longer // patch_size)
    kept = kept_patches(patches, rate)
    if rate == 0 or 0 < kept < patches:
        return None
    return f"{rate} of {patches} patches leaves {'none' if kept == 0 else 'all'} of them; choose another, or 0"


@_rule("schedule.mixing.cutoff_epochs", "schedule.mixing.mode")
def _mixing_changes(cutoff: int, mode: str) -> str | None:
    if mode != "standard" or cutoff == 0:
        return None
    return f"standard mixes for the whole run; set it to 0, or schedule.mixing.mode to early or late; given {cutoff}"


@_rule("schedule.mixing.mode", "augment.mixup", "augment.cutmix")
def _there_is_mixing(mode: str, mixup: float, cutmix: float) -> str | None:
    if mode != "standard" and mixup == 0 and cutmix == 0:
        return f"{mode} needs something to mix, but augment.mixup and augment.cutmix are 0"
    return None


@_rule("schedule.drop_path.mode", "model.drop_path")
def _drop_path_has_a_rate(mode: str, rate: float) -> str | None:
    return f"{mode} needs a rate, but model.drop_path is 0" if mode != "standard" and rate == 0 else None


@_rule("model.mask", "schedule.softness.mode", "schedule.softness.cutoff_epochs")
def _mask_can_soften(mask: str, mode: str, cutoff: int) -> str | None:
    if mask == "none" and (mode == "standard" or cutoff > 0):
        return (
            "without a mask nothing can soften; add schedule.softness.mode=soft schedule.softness.cutoff_epochs=0 "
            "schedule.softness.shape=constant"
        )
    return None


@_rule("optimizer.min_lr", "optimizer.lr")
def _lr_falls(min_lr: float, lr: float) -> str | None:
    return f"allowed: 0 to optimizer.lr ({lr:g}), given {min_lr:g}" if min_lr > lr else None


@_rule("optimizer.name", "train.parallel")
def _muon_has_whole_matrices(name: str, parallel: str) -> str | None:
    if name == "muon" and parallel == "fsdp":
        return "muon needs whole matrices, and train.parallel=fsdp cuts them; give train.parallel=ddp, or adamw"
    return None


@_rule("train.cuda_graphs", "train.compile")
def _graphs_are_compiled(cuda_graphs: bool, compiled: bool) -> str | None:
    if cuda_graphs and not compiled:
        return "CUDA graphs replay compiled kernels; give train.compile=true as well"
    return None


@_rule("train.total_batch", "train.device_batch", "train.accumulation", "optimizer.lr_scaling")
def _batch_splits(total: int, device: int | None, accumulation: int | None, lr_scaling: str | None) -> str | None:
    part = (device or 1) * (accumulation or 1)
    fixed = device is not None and accumulation is not None
    if total % part == 0 or (fixed and lr_scaling is not None):
        return None
    return (
        f"{total} is not a multiple of device_batch x accumulation ({device or 'any'} x {accumulation or 'any'}), "
        "so no number of devices fits; change one of the three"
    )


@_rule("train.total_batch", "data.max_train_images", "data.num_train_images")
def _an_epoch_has_a_step(total: int, most: int | None, published: int | None) -> str | None:
    images = min(count for count in (most, published, total) if count is not None)
    if images < total:
        return f"{total} is more than the {images} training images, so an epoch would have no step"
    return None


@_rule("data.val_fraction", "data.name", "data.eval_split")
def _one_evaluation_set(fraction: float, name: str, eval_split: str) -> str | None:
    if fraction > 0 and name == "digits":
        return "digits always sets its own 360 images aside; set it to 0"
    if fraction > 0 and eval_split != "auto":
        return f"evaluates a part of the training split, but data.eval_split asks for {eval_split}; choose one"
    return None


@_rule("data.path", "data.name")
def _digits_are_embedded(path: str | None, name: str) -> str | None:
    if path is not None and name == "digits":
        return f"digits are part of scikit-learn and have no path; to train on {path} add data.name=auto"
    return None


@_rule("data.mean", "model.in_chans")
@_rule("data.std", "model.in_chans")
def _one_per_channel(values: list[float], channels: int) -> str | None:
    if len(values) == channels:
        return None
    return f"allowed: one number per channel ({channels}), given {len(values)}"


def _sides(img_size: int | list[int]) -> tuple[int, int]:
    """Shorter and longer side in pixels."""
    sides = [img_size] if isinstance(img_size, int) else img_size
    return min(sides), max(sides)
