"""The family as timm models. Imported by `timm_bridge` once timm is loaded; importing it registers the names."""

from __future__ import annotations

import dataclasses
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from illama.models.config import ModelConfig
from illama.models.illama import ILlama
from illama.models.variants import PEERS, VARIANTS, roadmap_config

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# timm name -> configuration at 224 px.
CONFIGS: dict[str, ModelConfig] = {f"illama_{size}": config for size, config in VARIANTS.items()}
CONFIGS |= {f"{peer}_{size}": roadmap_config(peer, size) for peer in PEERS for size in ("small", "base", "large")}


def _data_config(config: ModelConfig) -> dict[str, Any]:
    """How timm should prepare images: 224/0.875 crop, warp from 384 px, small images as they are."""
    height, width = config.height_width
    longest = max(height, width)
    return {
        "input_size": (config.in_chans, height, width),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875 if 32 < longest < 384 else 1.0,
        "crop_mode": "squash" if longest >= 384 else "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


default_cfgs = generate_default_cfgs(
    {
        name: _data_config(config) | {"num_classes": 1000, "first_conv": "patch_embed.proj", "classifier": "head"}
        for name, config in CONFIGS.items()
    }
)


def _build(name: str, pretrained: bool, drop_path_rate: float | None = None, **kwargs: Any) -> Any:
    """Build one registered model; keyword arguments are fields of `ModelConfig`, and timm's `drop_path_rate`."""
    if drop_path_rate is not None:
        kwargs["drop_path"] = drop_path_rate
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    edits = {key: value for key, value in kwargs.items() if key in fields}
    config = dataclasses.replace(CONFIGS[name], **edits)

    def build(**given: Any) -> ILlama:
        unknown = sorted(set(given) - fields)
        if unknown:
            raise TypeError(f"{name} has no argument {unknown[0]!r}; it takes the fields of illama.ModelConfig")
        return ILlama(dataclasses.replace(config, **given))

    return build_model_with_cfg(
        build,
        name,
        pretrained,
        pretrained_cfg_overlay=_data_config(config) | overlay,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


def _entry_point(name: str) -> Any:
    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        return _build(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}: `illama.models` configuration as a timm model."
    return create


for _name in CONFIGS:
    globals()[_name] = register_model(_entry_point(_name))
