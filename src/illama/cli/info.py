"""`illama info`: what a file of weights is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from illama.cli.output import Json, check_targets, hand_over
from illama.console.table import aligned
from illama.console.text import shown

if TYPE_CHECKING:
    from illama.weights.load import Weights

SHOWN_CLASSES = 5


def info_command(weights: Path, /, *, json: Json = None) -> None:
    """The network that weights belong to: parameters, arithmetic, classes, transform, origin. Nothing is computed.

    Args:
        weights: A run, a checkpoint, weights of ours, of iLLaMA's authors, of timm's or Hugging Face's ViT, or the name
            of published ones.
    """
    from illama.weights.load import load_weights

    check_targets(json=json)
    loaded = load_weights(weights)
    hand_over(json, lambda: info_to_dict(loaded), lambda: print(report(loaded)))


def info_to_dict(weights: Weights) -> dict[str, Any]:
    """Everything as plain values."""
    from illama.models.cost import multiply_adds, needed_multiply_adds, parameters

    meta = weights.meta
    return {
        "file": str(weights.file),
        "parameters": parameters(meta.config),
        "multiply_adds": multiply_adds(meta.config),
        "needed_multiply_adds": needed_multiply_adds(meta.config, meta.softness),
        "types": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.state.values()}),
        "model": meta.config.to_dict(),
        "softness": meta.softness,
        "classes": list(meta.classes),
        "eval_transform": meta.eval_transform,
        "source": meta.source,
        "recipe": None if meta.recipe is None else meta.recipe["name"],
        "step": meta.step,
        "epoch": meta.epoch,
        "averaged": meta.ema,
        "unused": list(weights.unused),
    }


def report(weights: Weights) -> str:
    """The same for people, a line for each matter."""
    values, config, meta = info_to_dict(weights), weights.meta.config, weights.meta
    height, width = config.height_width
    names = ", ".join(shown(name) for name in meta.classes[:SHOWN_CLASSES])
    more = f", ... ({len(meta.classes):,})" if len(meta.classes) > SHOWN_CLASSES else ""
    lines = {
        "file": shown(values["file"], 200),
        "network": f"{config.depth} blocks, {config.embed_dim} wide, {config.num_heads} heads, {config.ffn}, "
        f"{config.norm} norm, positions {config.position}",
        "mask": "none (bidirectional)"
        if config.mask == "none"
        else f"{config.mask}, {config.mask_mode}, softness {meta.softness:g}",
        "image": f"{height} x {width} px (height x width), {config.in_chans} channels, "
        f"patches of {config.patch_size} px, class token {config.cls_position}",
        "parameters": f"{values['parameters']:,} ({', '.join(values['types'])})",
        "multiply-adds": f"{values['multiply_adds'] / 1e9:.3f} G for an image, "
        f"{values['needed_multiply_adds'] / 1e9:.3f} G of them needed for its classes",
        "classes": f"{names}{more}" if meta.classes else f"{config.num_classes:,} without names",
        "transform": "unknown" if meta.eval_transform is None else _words(meta.eval_transform),
        "origin": _origin(values),
    }
    if weights.unused:
        lines["not used"] = f"{len(weights.unused)} tensors of the file, such as {shown(weights.unused[0])}"
    return "\n".join(aligned(list(lines.items()), left=2))


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{shown(key)} {shown(value)}" for key, value in values.items())


def _origin(values: dict[str, Any]) -> str:
    if values["source"] is not None:
        return f"published as {shown(values['source'])}"
    if values["recipe"] is None:
        return "no recipe of this project"
    averaged = ", averaged weights" if values["averaged"] else ""
    return f"recipe {shown(values['recipe'])}, epoch {values['epoch']:,}, step {values['step']:,}{averaged}"
