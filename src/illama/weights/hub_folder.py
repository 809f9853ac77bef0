"""Folders as timm and transformers put them on the hub: config.json, weights, and how images are prepared.

What config.json says of a network is what its tensors cannot tell: heads, the norms' epsilon, a grid that is no square,
class names, and the evaluation transform.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from illama.console.text import read_json
from illama.errors import UserError
from illama.models.config import ModelConfig
from illama.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from illama.registry import closest

if TYPE_CHECKING:
    from illama.data import EvalTransform

PREPROCESSOR_FILE = "preprocessor_config.json"
_INTERPOLATIONS = ("bicubic", "bilinear")
_PILLOW_FILTERS = {2: "bilinear", 3: "bicubic"}
_HF_EPS = 1e-12
_TIMM_LAYERS = ("act_layer", "norm_layer", "mlp_layer", "attn_layer", "block_fn")  # arguments that change the function
# What the files leave out means this: transformers' ViTImageProcessor, timm's PretrainedCfg.
_HF_MEAN_STD = (0.5, 0.5, 0.5)
_TIMM_CROP = 0.875


@dataclass(frozen=True)
class HubConfig:
    """What stands beside weights.

    Attributes:
        edits: Fields of `ModelConfig`.
        classes: Class names in index order; () where they are unknown.
        transform: `EvalTransform.to_dict()`; None where it is unknown.
    """

    edits: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    transform: dict[str, Any] | None = None


def read_hub_config(file: Path) -> HubConfig:
    """What a config.json says.

    Raises:
        UserError: It cannot be read, or describes something that illama does not have.
    """
    config = _read(file)
    try:
        if "model_type" in config:
            return _of_transformers(config, file)
        if "architecture" in config:
            return _of_timm(config, file)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError, OverflowError) as error:
        raise UserError(
            f"{file} does not read like a description of a network ({type(error).__name__}: {error})"
        ) from None
    raise UserError(f"{file} names neither a model_type (transformers) nor an architecture (timm)")


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({str(error).splitlines()[0]}); fetch or copy it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} holds no JSON object; fetch or copy it again")
    return content


def _of_timm(config: Mapping[str, Any], file: Path) -> HubConfig:
    """timm's config.json: the architecture's name, `model_args`, and the evaluation under `pretrained_cfg`."""
    cfg = config.get("pretrained_cfg", config)
    arguments = config.get("model_args", {})
    size = arguments.get("img_size") or tuple(cfg.get("input_size", (3, 224, 224)))[1:]
    height, width = _sides(size, file)
    for layer in _TIMM_LAYERS:
        _demand(layer not in arguments, file, layer, arguments.get(layer), "timm's default, without a word")
    edits: dict[str, Any] = {"global_pool": config["global_pool"]} if config.get("global_pool") else {}
    edits |= {field.name: arguments[field.name] for field in fields(ModelConfig) if field.name in arguments}
    edits["img_size"] = height if height == width else (height, width)
    crop_pct, crop_mode = float(cfg.get("crop_pct", _TIMM_CROP)), cfg.get("crop_mode", "center")
    _demand(crop_mode in ("center", "squash"), file, "crop_mode", crop_mode, "center, squash")
    squash = "warp" if crop_pct == 1 else "warp_crop"
    transform = _transform(
        file,
        img_size=(height, width),
        crop_pct=crop_pct,
        mean=tuple(cfg.get("mean", IMAGENET_MEAN)),
        std=tuple(cfg.get("std", IMAGENET_STD)),
        mode=squash if crop_mode == "squash" else "crop",
        interpolation=cfg.get("interpolation", "bicubic"),
    )
    classes = config.get("label_names") or cfg.get("label_names") or ()
    return HubConfig(edits, tuple(map(str, classes)), transform.to_dict())


def _of_transformers(config: Mapping[str, Any], file: Path) -> HubConfig:
    """transformers' config.json of a ViT, and the preprocessor_config.json beside it."""
    kind = config["model_type"]
    if kind != "vit":
        hint = closest(str(kind), ["vit"])
        raise UserError(f"{file}: model_type {kind!r} is not supported; {hint} (ViTForImageClassification)")
    _demand(config.get("hidden_act", "gelu") == "gelu", file, "hidden_act", config.get("hidden_act"), "gelu")
    size = config.get("image_size", 224)
    target = _sides(size, file)
    edits = {
        "img_size": size if isinstance(size, int) else target,
        "num_heads": config.get("num_attention_heads", 12),
        "norm_eps": float(config.get("layer_norm_eps", _HF_EPS)),
    }
    labels = {int(number): str(label) for number, label in config.get("id2label", {}).items()}
    classes = tuple(labels[number] for number in range(len(labels))) if labels else ()
    if any(label == f"LABEL_{number}" for number, label in labels.items()):  # what transformers writes for no names
        classes = ()
    preprocessor = file.with_name(PREPROCESSOR_FILE)
    if not preprocessor.is_file():
        return HubConfig(edits, classes, None)
    return HubConfig(edits, classes, _preprocessing(_read(preprocessor), preprocessor, target).to_dict())


def _preprocessing(given: Mapping[str, Any], file: Path, target: tuple[int, int]) -> EvalTransform:
    """transformers' image processor as an evaluation transform; `target` is the network's (height, width)."""
    for step in ("do_resize", "do_rescale"):
        _demand(given.get(step, True) is True, file, step, given.get(step), "true")
    factor = given.get("rescale_factor", 1 / 255)
    _demand(math.isclose(factor, 1 / 255, rel_tol=1e-6), file, "rescale_factor", factor, "1/255")
    if given.get("do_normalize", True):
        mean, std = given.get("image_mean", _HF_MEAN_STD), given.get("image_std", _HF_MEAN_STD)
    else:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    crop = given.get("do_center_crop", False)
    size = given.get("size", target[0])
    size = {"height": size, "width": size} if isinstance(size, int) else size
    final = given.get("crop_size", target[0]) if crop else size
    final = {"height": final, "width": final} if isinstance(final, int) else final
    shown = (final.get("height"), final.get("width"))
    _demand(shown == target, file, "crop_size" if crop else "size", shown, f"the network's {target}")
    even = "shortest_edge" in size or not crop or size["height"] == size["width"]
    _demand(even and (not crop or target[0] == target[1]), file, "size", size, "one that is square before the crop")
    if "shortest_edge" in size:
        mode, full = "crop", size["shortest_edge"]
    else:
        mode, full = ("warp_crop" if crop and size["height"] != target[0] else "warp"), size["height"]
    resample = given.get("resample", 2)
    _demand(resample in _PILLOW_FILTERS, file, "resample", resample, "2 (bilinear), 3 (bicubic)")
    return _transform(
        file,
        img_size=target,
        crop_pct=_share(min(target), full),
        mean=tuple(mean),
        std=tuple(std),
        mode=mode,
        interpolation=_PILLOW_FILTERS[resample],
    )


def _transform(file: Path, **values: Any) -> EvalTransform:
    from illama.data import EvalTransform

    _demand(0 < values["crop_pct"] <= 1, file, "crop_pct", values["crop_pct"], "above 0, up to 1")
    allowed = ", ".join(_INTERPOLATIONS)
    _demand(values["interpolation"] in _INTERPOLATIONS, file, "interpolation", values["interpolation"], allowed)
    try:
        return EvalTransform(**values, in_chans=len(values["mean"]))
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def _sides(size: Any, file: Path) -> tuple[int, int]:
    """An image size as (height, width)."""
    sides = (size, size) if isinstance(size, int) else tuple(size)
    fits = len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides)
    _demand(fits, file, "image size", size, "pixels, or height and width")
    return sides[0], sides[1]


def _share(part: int, whole: int) -> float:
    """The crop's share of which `EvalTransform` makes `whole` again when it divides and cuts to whole pixels."""
    share = part / whole
    return share if math.floor(part / share) == whole else part / (whole + 0.5)


def _demand(fits: bool, file: Path, key: str, value: object, allowed: str) -> None:
    if not fits:
        raise UserError(f"{file}: {key} {value!r} is not supported; allowed: {allowed}")
