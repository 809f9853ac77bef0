"""Which network do these weights belong to? Read off names and shapes, given by the user where they do not tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from illama.checkpoint.tensors import shape_difference
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.models.variants import PEERS, ROADMAP

# Tensors cannot tell the number of heads. These widths stand for one number in timm, transformers and the paper; a
# network that was built otherwise must say so, and which number was taken is said (`load._assumption`).
HEADS_OF_WIDTH = {192: 3, 384: 6, 512: 8, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
WITHOUT_POSITION_PX = 224  # nothing in a network without a learned position tells its image size
# Tensors that other networks have and ours cannot have, and what that means.
_FOREIGN = {
    "dist_token": "a distilled DeiT, whose second token and head are not supported",
    "head_dist.": "a distilled DeiT, whose second token and head are not supported",
    "embeddings.distillation_token": "a distilled DeiT, whose second token and head are not supported",
    "reg_token": "a ViT with register tokens, which are not supported",
    "embeddings.register_tokens": "a ViT with register tokens, which are not supported",
    "fc_norm.": "a ViT that averages its tokens before the last norm, which is not supported",
    "norm_pre.": "a ViT with a norm before the first block, which is not supported",
    "mask_token": "a pre-trained encoder of masked images; only networks that classify are supported",
    "decoder": "a pre-trained encoder with a decoder; only networks that classify are supported",
}
_FOREIGN_IN_BLOCK = {
    "attn.q_norm.": "a ViT that normalises queries and keys, which is not supported",
    "attn.k_norm.": "a ViT that normalises queries and keys, which is not supported",
    "attn.norm.": "a ViT with a norm inside its attention, which is not supported",
    "mlp.norm.": "a ViT with a norm inside its feed-forward, which is not supported",
}
_INDISPENSABLE = ("cls_token", "patch_embed.proj.weight", "blocks.0.norm1.weight", "blocks.0.mlp.fc1.weight")
ENORMOUS = 10  # times as much as the tensors could be is no mistake of a number, but a trap
_LAYER_SCALE = 1e-4  # only its presence counts: the file brings the values


def infer_config(state: Mapping[str, Tensor], edits: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration of the network that weights belong to.

    SwiGLU with RMSNorm is iLLaMA as published, an MLP with LayerNorm is a ViT, SwiGLU with LayerNorm and LayerScale but
    no learned position is VisionLLaMA. Whether tokens see later ones cannot be read off tensors: fine-tuned variants of
    the roadmap need `edits`.

    Args:
        state: Weights in our names (`dialects.translate`).
        edits: Fields of `ModelConfig` that are known from elsewhere; they win.

    Raises:
        UserError: A tensor that does not fit any of these, is missing, or does not tell something; it is named.
    """
    given = dict(edits or {})
    for name in state:
        inside = re.fullmatch(r"blocks\.\d+\.(.+)", name)
        table, local = (_FOREIGN, name) if inside is None else (_FOREIGN_IN_BLOCK, inside[1])
        for beginning, what in table.items():
            if local.startswith(beginning):
                raise UserError(f"{name}: {what}; choose other weights")
    for name in _INDISPENSABLE:
        if name not in state:
            first = ", ".join(list(state)[:3])
            raise UserError(
                f"missing {name}: these are weights of no network that illama knows, or a part of them; "
                f"the first names are {first}"
            )
    shape = tuple(state["patch_embed.proj.weight"].shape)
    if len(shape) != 4:
        raise UserError(f"patch_embed.proj.weight is {shape} instead of (D, in_chans, p, p); choose other weights")
    config = ModelConfig(**(_family(state, given) | _sizes(state, given) | given))
    check_shapes(state, config)
    return config


def check_shapes(state: Mapping[str, Tensor], config: ModelConfig) -> None:
    """Compare every name and shape with those of the network.

    A description of something enormous is refused before it takes time or memory to build.

    Raises:
        UserError: Names the first tensor that is missing, left over or of another shape, and counts the others.
    """
    largest = max((tensor.numel() for tensor in state.values()), default=0)
    positions = config.num_patches + 1 if "learned" in config.position else 0
    needed = config.embed_dim * max(1, config.num_classes, positions)
    if config.depth > ENORMOUS * len(state) or needed > ENORMOUS * largest:
        raise UserError(
            f"a network of depth {config.depth}, width {config.embed_dim}, {config.num_classes} classes and "
            f"{config.num_patches} patches has far more or larger tensors"
        )
    with torch.device("meta"):
        wrong = shape_difference(state, ILlama(config).state_dict())
    if wrong is not None:
        height, width = config.height_width
        kind = "an iLLaMA" if (config.ffn, config.norm) == ("swiglu", "rms") else "a ViT"
        kind = "a VisionLLaMA" if config.position == "rope2d" else kind
        raise UserError(
            f"{wrong}: the weights fit no network that illama knows, or the file is incomplete; compared with {kind} "
            f"of width {config.embed_dim}, depth {config.depth}, {height}x{width} px in patches of {config.patch_size}"
        )


def _family(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but sizes."""
    ffn = "swiglu" if "blocks.0.mlp.fc3.weight" in state else "mlp"
    norm = "layer" if "blocks.0.norm1.bias" in state else "rms"
    learned = "pos_embed" in state
    fields: dict[str, Any] = {
        "ffn": ffn,
        "norm": norm,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "layer_scale": _LAYER_SCALE if "blocks.0.ls1.gamma" in state else None,
    }
    if ffn == "swiglu" and norm == "rms" and learned:
        return ROADMAP["learned_position"] | fields
    if ffn == "mlp" and norm == "layer" and learned:
        return ROADMAP["vit"] | fields
    if ffn == "swiglu" and norm == "layer" and not learned and fields["layer_scale"] is not None:
        return PEERS["visionllama"] | fields
    unknown = [field for field in ("mask", "cls_position", "position") if field not in given]
    if unknown:
        what = f"{'SwiGLU' if ffn == 'swiglu' else 'an MLP'} with {'RMSNorm' if norm == 'rms' else 'LayerNorm'}"
        where = "" if learned else " and no pos_embed"
        words = ", ".join(f"model.{field}=..." for field in unknown)
        raise UserError(
            f"blocks.0.mlp and blocks.0.norm1 are {what}{where}, which several networks have; say which: "
            f"illama convert IN OUT {words}"
        )
    return fields


def _sizes(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> dict[str, Any]:
    """Every size, those that only a table or a square tells included."""
    width, in_chans, patch_size, _ = state["patch_embed.proj.weight"].shape
    blocks = {int(block[1]) for name in state if (block := re.match(r"blocks\.(\d{1,4})\.", name))}
    absent = set(range(len(blocks))) - blocks
    if absent:
        raise UserError(f"missing blocks.{min(absent)}.norm1.weight, but not blocks.{max(blocks)}; copy the file again")
    if "num_heads" not in given and width not in HEADS_OF_WIDTH:
        raise UserError(
            f"cls_token is {width} wide, which does not tell the number of heads; give it: "
            "illama convert IN OUT model.num_heads=..."
        )
    img_size = given.get("img_size", WITHOUT_POSITION_PX)
    if "img_size" not in given and "pos_embed" in state:  # the square behind the position embedding
        shape = tuple(state["pos_embed"].shape)
        patches = shape[1] - 1 if len(shape) == 3 else 0
        side = math.isqrt(max(patches, 0))
        if side == 0 or side * side != patches:
            raise UserError(
                f"pos_embed is {shape}: {patches} patches are no square grid; say which image size they belong to: "
                "illama convert IN OUT model.img_size=[HEIGHT,WIDTH]"
            )
        img_size = side * given.get("patch_size", patch_size)
    return {
        "img_size": img_size,
        "embed_dim": width,
        "in_chans": in_chans,
        "patch_size": patch_size,
        "depth": len(blocks),
        "num_heads": HEADS_OF_WIDTH.get(width),
        "num_classes": state["head.weight"].shape[0] if "head.weight" in state and state["head.weight"].dim() else 0,
    }
