"""The family as timm models. Imported by `hub` once timm is loaded; importing it registers the names."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from timm.models import (
    PretrainedCfg,
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)

from illama.data.eval_transform import standard_mode
from illama.models.config import ModelConfig
from illama.models.illama import ILlama
from illama.models.variants import PEERS, VARIANTS, roadmap_config
from illama.recipes.schema import IMAGENET_MEAN, IMAGENET_STD
from illama.weights.adapt import adapt_state_dict
from illama.weights.load import load_weights
from illama.weights.published import LICENCE_NOTE, PUBLISHED, REPOSITORY, PublishedWeights, fetch, find_published

_CONVOLUTION = "patch_embed.proj.weight"
_log = logging.getLogger("illama")

# timm name -> configuration at 224 px.
CONFIGS: dict[str, ModelConfig] = {f"illama_{size}": config for size, config in VARIANTS.items()}
CONFIGS |= {f"{peer}_{size}": roadmap_config(peer, size) for peer in PEERS for size in ("small", "base", "large")}


def _data_config(config: ModelConfig) -> dict[str, Any]:
    """How timm should prepare images: 224/0.875 crop, warp from 384 px, small images as they are."""
    height, width = config.height_width
    mode = standard_mode((height, width))
    return {
        "input_size": (config.in_chans, height, width),
        "fixed_input_size": True,
        "interpolation": "bicubic",
        "crop_pct": 0.875 if mode == "crop" else 1.0,
        "crop_mode": "squash" if mode == "warp" else "center",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def _network_config(config: ModelConfig) -> dict[str, Any]:
    return _data_config(config) | {"num_classes": 1000, "first_conv": "patch_embed.proj", "classifier": "head"}


def _published_config(row: PublishedWeights) -> dict[str, Any]:
    return _network_config(row.config) | {
        "hf_hub_id": REPOSITORY,
        "hf_hub_filename": row.file,
        "license": LICENCE_NOTE.removeprefix("licence "),
        "origin_url": row.url,
        "paper_ids": "arXiv:2404.06773",
        "notes": (
            f"ImageNet-1K top-1: {row.top1:.1f} in the paper, {row.top1_log:.3f} at the end of the authors' log",
            LICENCE_NOTE,
        ),
    }


# timm takes the first tag for a plain name: that is the one at 224 px, as the plain name always meant.
_CFGS: dict[str, dict[str, Any] | PretrainedCfg] = {name: _published_config(row) for name, row in PUBLISHED.items()}
_CFGS |= {name: _network_config(config) for name, config in CONFIGS.items() if not name.startswith("illama_")}
default_cfgs = generate_default_cfgs(_CFGS)


def _build(name: str, pretrained: bool, drop_path_rate: float | None = None, **kwargs: Any) -> Any:
    """Build one registered model; keyword arguments are fields of `ModelConfig`, and timm's `drop_path_rate`."""
    if drop_path_rate is not None:
        kwargs["drop_path"] = drop_path_rate
    overlay = kwargs.pop("pretrained_cfg_overlay", None) or {}
    chosen = resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay)
    if chosen.fixed_input_size:
        height, width = chosen.input_size[1:]
        kwargs.setdefault("img_size", height if height == width else (height, width))
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    edits = {key: value for key, value in kwargs.items() if key in fields}
    config = dataclasses.replace(CONFIGS[name], **edits)
    file = _weights_file(chosen, kwargs.get("cache_dir")) if pretrained else None

    def build(**given: Any) -> ILlama:
        unknown = sorted(set(given) - fields)
        if unknown:
            raise TypeError(f"{name} has no argument {unknown[0]!r}; it takes the fields of illama.ModelConfig")
        model = ILlama(dataclasses.replace(config, **given))
        if file is not None:
            _load(model, file)
        return model

    return build_model_with_cfg(
        build,
        name,
        pretrained and file is None,  # then it is loaded already, by a reader that runs no code
        pretrained_cfg_overlay=_data_config(config) | overlay,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **kwargs,
    )


def _weights_file(chosen: PretrainedCfg, cache_dir: Path | str | None) -> Path | None:
    """The published or local file that a model is to be loaded from; None leaves it to timm (hub, local folder)."""
    if chosen.source in ("hf-hub", "local-dir") or chosen.state_dict is not None:
        return None
    if chosen.file:
        return Path(chosen.file)
    row = find_published(chosen.hf_hub_filename)
    return None if row is None or chosen.hf_hub_id != REPOSITORY else fetch(row.name, cache_dir)


def _load(model: ILlama, file: Path) -> None:
    """Load a weights file of any origin: position embedding, head and channels of the input are fitted."""
    weights = load_weights(file)
    state, config = weights.state, weights.meta.config
    if config.in_chans != model.config.in_chans:  # timm's way: summed for grey images, repeated for more channels
        state[_CONVOLUTION] = adapt_input_conv(model.config.in_chans, state[_CONVOLUTION])
    report = adapt_state_dict(state, model, dataclasses.replace(config, in_chans=model.config.in_chans))
    model.set_softness(weights.meta.softness)
    _log.log(logging.WARNING if report.differences else logging.INFO, "%s: %s", file.name, report)


def _entry_point(name: str) -> Any:
    def create(pretrained: bool = False, **kwargs: Any) -> Any:
        return _build(name, pretrained, **kwargs)

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}: `illama.models` configuration as a timm model."
    return create


for _name in CONFIGS:
    globals()[_name] = register_model(_entry_point(_name))
