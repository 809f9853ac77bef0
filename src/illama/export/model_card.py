"""The model card: what a weights file is, in Markdown, for whoever finds it later."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from illama.checkpoint.format import Meta
from illama.console.text import shown
from illama.models import ILlama, ModelConfig
from illama.report.formats import to_markdown
from illama.weights.adapt import LoadReport
from illama.weights.load import Weights
from illama.weights.published import HUB, LICENCE_NOTE, REPOSITORY, PublishedWeights, find_published

SHOWN_CLASSES = 20


def model_card(target: Path, weights: Weights, meta: Meta, report: LoadReport) -> str:
    """The card of a converted file.

    Args:
        target: The weights file that the card describes.
        weights: What it was made from.
        meta: What travels with it.
        report: What became of each tensor.
    """
    row = find_published(weights.meta.source)
    parts = [f"# {to_markdown(target.stem)}", _what(meta, row)]
    parts += ["## Network", _network(meta.config, meta.softness)]
    parts += ["## Origin", _origin(weights, row)]
    parts += ["## Accuracy", _accuracy(meta, row)]
    parts += ["## Images", _images(meta)]
    parts += ["## Load", _load(target, meta.config)]
    parts += ["## What became of the tensors", _tensors(weights, report)]
    return "\n\n".join(parts) + "\n"


def _kind(config: ModelConfig) -> str:
    if (config.ffn, config.norm) == ("swiglu", "rms"):
        return "an iLLaMA, the image LLaMA (arXiv 2404.06773)"
    if config.ffn == "mlp":
        return "a vision transformer (ViT)"
    return "a VisionLLaMA-plain (arXiv 2403.00522)" if config.position == "rope2d" else "a ViT with LLaMA's parts"


def _what(meta: Meta, row: PublishedWeights | None) -> str:
    config = meta.config
    height, width = config.height_width
    published = f" Weights published as `{row.name}`" + ("." if meta.source else ", changed.") if row else ""
    head = f"{config.num_classes} classes" if config.num_classes else "no head: it gives features"
    return f"Weights of {_kind(config)} at {height} x {width} px, {head}.{published}"


def _network(config: ModelConfig, softness: float) -> str:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in ILlama(config).parameters())
    rows = {
        "parameters": f"{parameters:,}",
        "width, depth, heads": f"{config.embed_dim}, {config.depth}, {config.num_heads}",
        "image, patch, channels": f"{' x '.join(map(str, config.height_width))} px, {config.patch_size} px, "
        f"{config.in_chans}",
        "feed-forward": f"{config.ffn}, {config.hidden_dim} wide",
        "norm": f"{config.norm}, epsilon {config.norm_eps:g}",
        "attention": f"mask {config.mask}, {config.mask_mode}, softness {softness:g}",
        "class token": config.cls_position,
        "position": config.position,
        "LayerScale": "yes" if config.layer_scale is not None else "no",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _origin(weights: Weights, row: PublishedWeights | None) -> str:
    if row is not None:
        return (
            f"Made by `illama convert` from `{row.file}` of [{REPOSITORY}]({HUB}/{REPOSITORY}), by the authors of the "
            f"paper. Licence: **{LICENCE_NOTE}**; ask them before you publish or sell what you make of it."
        )
    recipe = (
        "" if weights.meta.recipe is None else f", trained with the recipe `{shown(weights.meta.recipe.get('name'))}`"
    )
    source = shown("/".join(weights.file.absolute().parts[-2:]))  # half of the files are called model.safetensors
    licence = "Licence: whatever holds for that file; illama does not know it."
    return f"Made by `illama convert` from `{source}`{recipe}. {licence}"


def _accuracy(meta: Meta, row: PublishedWeights | None) -> str:
    if row is None:
        return "Unknown. `illama eval FILE --data FOLDER` measures it."
    values = (
        f"ImageNet-1K validation, top-1: {row.top1:.1f} % in the paper, {row.top1_log:.3f} % in the last epoch of the "
        f"authors' log (best epoch {row.best_log:.3f} %)."
    )
    if meta.source is None:
        return f"{values} These are the values before the change of size or head, not of this file."
    return f"{values} `illama verify FILE --data IMAGENET` compares."


def _images(meta: Meta) -> str:
    if meta.eval_transform is None:
        how = "How images have to be resized and normalised is not known."
    else:
        how = "\n".join(f"- {key}: {value}" for key, value in meta.eval_transform.items())
    if not meta.classes:
        return f"{how}\n\nClass names are not known."
    named = ", ".join(map(to_markdown, meta.classes[:SHOWN_CLASSES]))
    more = f", and {len(meta.classes) - SHOWN_CLASSES} more" if len(meta.classes) > SHOWN_CLASSES else ""
    return f"{how}\n\nClasses in index order: {named}{more}."


def _load(target: Path, config: ModelConfig) -> str:
    """Python that runs as it stands, from files to answers and from a tensor to logits."""
    shape, name = (1, config.in_chans, *config.height_width), json.dumps(target.name)
    return "\n".join(
        [
            "```python",
            "import illama, torch",
            "",
            f"model, meta = illama.load_model({name})",
            f"outputs = model(torch.zeros{shape})  # images prepared as above",
            *([f'answers = illama.predict({name}, "photos/*.jpg")'] if config.num_classes else []),
            "```",
        ]
    )


def _tensors(weights: Weights, report: LoadReport) -> str:
    unused = f" Not needed by this network: {', '.join(weights.unused)}." if weights.unused else ""
    return f"{report}.{unused}"
