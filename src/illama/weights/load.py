"""A model ready to use, from a run, a checkpoint, or weights of any origin."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from illama.checkpoint.format import Meta
from illama.checkpoint.tensors import demand_finite
from illama.data import EvalTransform
from illama.data.eval_transform import standard_mode
from illama.data.imagenet import NUM_CLASSES, is_imagenet_head, wnids
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.weights.dialects import HUGGINGFACE, VISIONLLAMA, translate
from illama.weights.foreign import read_weights
from illama.weights.hub_folder import HubConfig, read_hub_config
from illama.weights.infer import check_shapes, infer_config
from illama.weights.locate import Place, locate
from illama.weights.published import HUB, REPOSITORY

_log = logging.getLogger("illama")


class Weights(NamedTuple):
    """Weights and what they belong to.

    Attributes:
        state: Parameter name -> tensor on the CPU, in our names; every shape fits `meta.config`.
        meta: What their file says of them, or what was found out: classes, transform, softness.
        file: Where they were read.
        unused: Names of the file that the network has no use for.
    """

    state: dict[str, Tensor]
    meta: Meta
    file: Path
    unused: tuple[str, ...] = ()


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[ILlama, Meta]:
    """Rebuild a model with its weights.

    Args:
        path: A run folder (its last checkpoint), a checkpoint folder, a weights file (.safetensors, .pth, .pt, .bin) of
            illama, of iLLaMA's authors, of timm's ViT or of VisionLLaMA, a folder with config.json and weights (timm,
            transformers' ViT), or the name of published weights such as "illama_tiny.in1k".
        device: Where the model shall be.

    Returns:
        The model in evaluation mode at the softness it was saved with, and what its file says of it: classes,
        transform, recipe. For weights of others that is found out: 1000 classes are ImageNet's, softness is 0, and a
        ViT becomes the same function as an `ILlama`.

    Raises:
        UserError: Nothing there, damaged, or weights of a network that illama does not know.
    """
    weights = load_weights(path)
    model = ILlama(weights.meta.config)
    model.load_state_dict(weights.state)
    model.set_softness(weights.meta.softness)
    return model.to(device).eval(), weights.meta


def load_weights(path: Path | str, edits: Mapping[str, Any] | None = None) -> Weights:
    """Weights with their description, which is inferred for files that bring none.

    Args:
        path: As `load_model`.
        edits: Fields of `ModelConfig` that win over what is read or inferred.

    Raises:
        UserError: As `load_model`.
    """
    place, edits = locate(path), edits or {}
    state, meta = read_weights(place.file)
    try:
        weights = _of_others(state, place, edits) if meta is None else _of_ours(state, meta, place, edits)
        demand_finite(weights.state)
    except UserError as error:
        raise UserError(f"{place.file}: {str(error).removeprefix(f'{place.file}: ')}") from None
    return weights


def standard_transform(config: ModelConfig) -> dict[str, Any] | None:
    """How the published networks look at images of this size, as `EvalTransform.to_dict()`; None for odd channels.

    ImageNet's mean and deviation (halves for grey images), bicubic; up to 32 px nothing, from 384 px on a warp, a
    centre crop of 0.875 between.
    """
    if config.in_chans not in (1, 3):
        return None
    grey = {} if config.in_chans == 3 else {"mean": (0.5,), "std": (0.5,), "in_chans": 1}
    mode = standard_mode(config.height_width)
    return EvalTransform(config.height_width, mode=mode, **grey).to_dict()  # type: ignore[arg-type]


def _of_ours(state: dict[str, Tensor], meta: Meta, place: Place, edits: Mapping[str, Any]) -> Weights:
    """Weights that brought their description."""
    config = dataclasses.replace(meta.config, **edits)
    try:
        check_shapes(state, config)
        if meta.classes and config.num_classes not in (0, len(meta.classes)):
            raise UserError(f"it names {len(meta.classes)} classes, the head has {config.num_classes}")
    except UserError as error:
        whose = "contradicts its own description" if not edits else "does not fit what is asked for"
        raise UserError(f"it {whose}: {error}") from None
    if config != meta.config:  # another function of the same tensors: neither a recipe's nor a published network's
        meta = dataclasses.replace(meta, config=config, recipe=None, source=None)
    return Weights(state, meta, place.file)


def _of_others(state: Mapping[str, Tensor], place: Place, edits: Mapping[str, Any]) -> Weights:
    """Weights whose description is read off their names, their shapes and what stands beside them."""
    beside = HubConfig() if place.config_file is None else read_hub_config(place.config_file)
    size = (beside.edits | dict(edits)).get("img_size")
    height_width = (size, size) if isinstance(size, int) else (size[0], size[-1]) if size else None
    state, dialect, unused = translate(state, height_width)
    if dialect == HUGGINGFACE and place.config_file is None:
        raise UserError(
            "weights of transformers need the config.json that belongs to them (heads, epsilon of the norms); "
            "put it into the same folder and give the folder"
        )
    config, published = infer_config(state, beside.edits | dict(edits)), place.published
    if published is not None:
        if config != published.config and not edits:
            raise UserError(
                f"named like {published.name}, but it holds a network of width {config.embed_dim}, depth "
                f"{config.depth}, {config.height_width[0]} px, {config.num_classes} classes; rename the file"
            )
        where = f"{published.file} of {HUB}/{REPOSITORY}"
        _log.info("%s: %s; no licence is stated for these weights", published.name, where)
    transform = beside.transform
    if transform is not None and transform["in_chans"] != config.in_chans:
        raise UserError(f"its images are normalised in {transform['in_chans']} channels, it takes {config.in_chans}")
    if transform is None and dialect != HUGGINGFACE:
        transform = standard_transform(config)
        if published is None:
            _log.warning("%s: %s", place.file, _assumption(config, transform, dialect))
    classes = beside.classes
    if classes and config.num_classes != len(classes):
        raise UserError(f"config.json names {len(classes)} classes, the head has {config.num_classes}; correct it")
    in_words = bool(classes) and classes[0].startswith("tench") and classes[-1].startswith("toilet")
    if is_imagenet_head(config.num_classes, classes) or (config.num_classes == NUM_CLASSES and in_words):
        classes = wnids()
    meta = Meta(
        config=config,
        classes=classes,
        eval_transform=transform,
        source=published.name if published is not None and not edits else None,
    )
    return Weights(state, meta, place.file, unused)


def _assumption(config: ModelConfig, transform: dict[str, Any] | None, dialect: str) -> str:
    """What had to be taken for granted, in one line."""
    kind = "a ViT" if config.ffn == "mlp" else "VisionLLaMA" if dialect == VISIONLLAMA else "iLLaMA as published"
    heads = f"{kind} with {config.num_heads} heads"
    if transform is None:
        return f"the file names no network, taken for {heads}; how its images were normalised is unknown"
    images = f"{transform['mode']}, mean {transform['mean']}, deviation {transform['std']}"
    return f"the file names no network, taken for {heads}; images as ImageNet's ({images})"
