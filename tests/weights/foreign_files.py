"""Weights as other projects save them, made cheaply."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from illama.models import ILlama, ModelConfig
from illama.weights.published import PublishedWeights


def cheap_state(config: ModelConfig) -> dict[str, Tensor]:
    """Weights of any size in a few kilobytes: each tensor repeats one random row."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ILlama(config).state_dict().items()}
    return {name: (0.02 * torch.randn(shape[-1])).expand(shape) for name, shape in shapes.items()}


def random_state(config: ModelConfig) -> dict[str, Tensor]:
    """Weights that are far from their initial values everywhere."""
    state = ILlama(config).state_dict()
    return {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in state.items()}


def save_like_the_authors(
    folder: Path, row: PublishedWeights, state: dict[str, Tensor], layout: str = "training"
) -> Path:
    """A file of the authors: the weights alone, or with everything that their training script puts beside them."""
    file = folder / row.file
    arguments = argparse.Namespace(
        model=f"illama_{row.variant}", input_size=row.img_size, lr=4e-3, resume="", betas=None
    )
    beside = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "epoch": 299,
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "args": arguments,
    }
    torch.save(state if layout == "plain" else {"model": state, **beside}, file)
    return file


def huggingface_state(state: dict[str, Tensor], depth: int, version: int = 4) -> dict[str, Tensor]:
    """A ViT's weights in our names as those of transformers' ViTForImageClassification."""
    layer = "vit.encoder.layer" if version == 4 else "vit.layers"
    found = {
        "vit.embeddings.cls_token": state["cls_token"],
        "vit.embeddings.position_embeddings": state["pos_embed"],
    }
    for kind in ("weight", "bias"):
        found[f"vit.embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        found[f"vit.layernorm.{kind}"] = state[f"norm.{kind}"]
        found[f"classifier.{kind}"] = state[f"head.{kind}"]
        for i in range(depth):
            q_k_v = state[f"blocks.{i}.attn.qkv.{kind}"].chunk(3)
            if version == 4:
                names = [f"attention.attention.{part}" for part in ("query", "key", "value")]
                rest = ["attention.output.dense", "intermediate.dense", "output.dense"]
            else:
                names = [f"attention.{part}_proj" for part in ("q", "k", "v")]
                rest = ["attention.o_proj", "mlp.fc1", "mlp.fc2"]
            found |= {f"{layer}.{i}.{name}.{kind}": part.clone() for name, part in zip(names, q_k_v, strict=True)}
            ours = [f"blocks.{i}.{name}.{kind}" for name in ("attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")]
            rest = [*rest, "layernorm_before", "layernorm_after"]
            found |= {f"{layer}.{i}.{name}.{kind}": state[own] for name, own in zip(rest, ours, strict=True)}
    return found


def save_folder(folder: Path, state: dict[str, Tensor], config: dict[str, Any], **others: dict[str, Any]) -> Path:
    """A hub folder: weights, config.json and further JSON files by name."""
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    for name, content in {"config": config, **others}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder
