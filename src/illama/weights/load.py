"""A model ready to use, from a run, a checkpoint, or weights of any origin.

Two halves. What is at this path? From what a user types to a weights file and what stands beside it (`locate`; a new
kind of path is a branch of it); nothing of the weights is read. Then build and fill (`load_model`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from illama.checkpoint.folder import META_FILE, checkpoint_folder, current, newest_checkpoint, read_meta
from illama.checkpoint.format import MODEL_FILE, Meta
from illama.checkpoint.tensors import demand_finite
from illama.data import EvalTransform
from illama.data.eval_transform import standard_mode
from illama.data.imagenet import NUM_CLASSES, is_imagenet_head, wnids
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.registry import closest
from illama.weights.dialects import HUGGINGFACE, VISIONLLAMA, translate
from illama.weights.foreign import WEIGHTS_ENDINGS, read_weights
from illama.weights.hub_folder import HubConfig, read_hub_config
from illama.weights.infer import check_shapes, infer_config
from illama.weights.published import HUB, PUBLISHED, REPOSITORY, PublishedWeights, fetch, find_published

CONFIG_FILE = "config.json"  # of timm's and transformers' folders
HUB_FILES = ("model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth")  # the weights beside it
LONGEST_PATH = 200  # characters of it in a message
_log = logging.getLogger("illama")


@dataclass(frozen=True)
class Place:
    """Where weights lie.

    Attributes:
        file: The weights file.
        config_file: The config.json beside it, which describes weights that do not describe themselves; None without.
        published: The authors' file that it is by its name; None for all others.
    """

    file: Path
    config_file: Path | None
    published: PublishedWeights | None


def locate(weights: Path | str) -> Place:
    """The weights file behind a run, a checkpoint, a file, a hub folder, or the name of published weights.

    What exists on the disk comes before a published name. Published weights are downloaded once (`published.fetch`).
    Where a run's last checkpoint is damaged, the run stands for the one before it, which is logged as a warning.

    Args:
        weights: A run's folder (its last checkpoint), a checkpoint's folder, a weights file, a folder with config.json
            and weights (timm, transformers), or a name such as "illama_tiny.in1k".

    Raises:
        UserError: Nothing there, damaged, not readable, or published weights that cannot be fetched.
    """
    path, text = Path(weights), str(weights)
    try:
        if path.is_file():
            file = path
        elif (path / CONFIG_FILE).is_file() and not (path / META_FILE).is_file():  # a hub folder
            names = [name for name in HUB_FILES if (path / name).is_file()]
            if not names:
                raise UserError(
                    f"{path} holds {CONFIG_FILE}, but none of {', '.join(HUB_FILES)}; give the weights file"
                )
            file = path / names[0]
        elif not path.exists() and text in PUBLISHED:
            file = fetch(text)
        elif (newest := newest_checkpoint(path)) is not None:
            # The last weights are what the run reports. The best ones are chosen by the evaluation split, so their
            # accuracy on it flatters; RUN/checkpoints/best names them.
            if newest.warning is not None:
                _log.warning(newest.warning)
            file = (current(checkpoint_folder(path, newest.tag)) or path) / MODEL_FILE
        elif (folder := current(path)) is not None:
            file = folder / MODEL_FILE
            if not file.is_file():
                raise UserError(f"{path} holds neither a run (checkpoints/last) nor a checkpoint ({MODEL_FILE})")
            read_meta(folder)
        else:
            is_path = len(path.parts) > 1 or path.suffix in WEIGHTS_ENDINGS
            or_name = "" if is_path else f", nor published weights of that name; {closest(text, PUBLISHED)}"
            raise UserError(f"there is no run, checkpoint or weights file {path}{or_name}")
        config_file = file.with_name(CONFIG_FILE)
        has_config = file.name in HUB_FILES and config_file.is_file()
    except OSError as error:  # a folder that may not be read, a name that is too long
        raise UserError(f"cannot read {text[:LONGEST_PATH]}: {error.strerror or error}") from None
    return Place(file, config_file if has_config else None, find_published(file.name))


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
