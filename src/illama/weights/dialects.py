"""Parameter names of other projects in ours. Nothing here knows sizes; every function maps a dict to a dict.

timm's ViT and the authors' files use our names. timm's DeiT-3 has a position embedding without a row for the class
token. Hugging Face's ViT splits q, k and v. VisionLLaMA's public code has other names for feed-forward and LayerScale.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from illama.errors import UserError

OURS, HUGGINGFACE, VISIONLLAMA = "ours", "Hugging Face's ViT", "VisionLLaMA's public code"
_HF_PATCHES = "embeddings.patch_embeddings.projection.weight"
_HF_ROOTS = ("vit.", "")  # with a head on top, and the encoder alone
_HF_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    "classifier": "head",
}
_HF_BLOCK = {
    "attention.output.dense": "attn.proj",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
# Transformers 5 has new names in memory and writes files with the old ones.
_HF_LAYER = re.compile(r"(?:encoder\.layer|layers)\.(\d+)\.(.+)")
_HF_QKV = re.compile(r"attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.(weight|bias)")
_QKV = ("query", "key", "value")
_HF_UNUSED = ("pooler.", "embeddings.mask_token")  # of the encoder alone; a classifier reads the class token itself
_VISIONLLAMA_NAMES = {
    "gamma_1": "ls1.gamma",
    "gamma_2": "ls2.gamma",
    "mlp.c_fc1.weight": "mlp.fc1.weight",
    "mlp.c_fc2.weight": "mlp.fc3.weight",
    "mlp.c_proj.weight": "mlp.fc2.weight",
}


class Translated(NamedTuple):
    """Weights in our names.

    Attributes:
        state: Parameter name -> tensor.
        dialect: Whose names they had: one of the constants above.
        unused: Names of the file that no classifier needs.
    """

    state: dict[str, Tensor]
    dialect: str
    unused: tuple[str, ...] = ()


def translate(state: Mapping[str, Tensor], height_width: tuple[int, int] | None = None) -> Translated:
    """Weights in our names, whosever names they have; unknown names stay as they are.

    Args:
        state: Parameter name -> tensor.
        height_width: The network's image size where it is known: tells whether a ViT's positions count the class token.

    Raises:
        UserError: One of q, k and v is missing, or they differ in shape; a network of transformers that is no ViT.
    """
    if any(name.endswith(_HF_PATCHES) for name in state):
        return _from_huggingface(state)
    if any(name.startswith("blocks.") and ".mlp.c_fc1." in name for name in state):
        # VisionLLaMA-plain as Meituan's code saves it (specification: model, section 5)
        return Translated({_of_visionllama(name): tensor for name, tensor in state.items()}, VISIONLLAMA)
    return Translated(_with_class_row(state, height_width), OURS)


def _from_huggingface(state: Mapping[str, Tensor]) -> Translated:
    """Weights of transformers' ViTForImageClassification or ViTModel; q, k and v become one tensor."""
    root = next((root for root in _HF_ROOTS if root + _HF_PATCHES in state), None)
    if root is None:
        patches = next(name for name in state if name.endswith(_HF_PATCHES))
        raise UserError(
            f"{patches} is of transformers, but of neither ViTForImageClassification nor ViTModel, whose names begin "
            "with vit. or embeddings.; choose other weights"
        )
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    unused = []
    for name, tensor in state.items():
        bare = name.removeprefix(root)
        layer = _HF_LAYER.fullmatch(bare)
        if bare.startswith(_HF_UNUSED):
            unused.append(name)
        elif layer is None:
            ours[_renamed(bare, _HF_NAMES)] = tensor
        elif qkv := _HF_QKV.fullmatch(layer[2]):
            part = next(part for part in _QKV if part[0] == qkv[1][0])
            parts.setdefault(f"blocks.{layer[1]}.attn.qkv.{qkv[2]}", {})[part] = tensor
        else:
            ours[f"blocks.{layer[1]}.{_renamed(layer[2], _HF_BLOCK)}"] = tensor
    for name, given in parts.items():
        missing = [part for part in _QKV if part not in given]
        if missing:
            raise UserError(f"{missing[0]} is missing, which is a part of {name}; fetch or copy the file again")
        three = [given[part] for part in _QKV]
        if len({tensor.shape for tensor in three}) > 1 or not three[0].dim():
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in three)
            raise UserError(f"query, key and value have shapes ({shapes}) that make no {name}")
        ours[name] = torch.cat(three)
    return Translated(ours, HUGGINGFACE, tuple(unused))


def _with_class_row(state: Mapping[str, Tensor], height_width: tuple[int, int] | None) -> dict[str, Tensor]:
    """A position embedding of a ViT's patches alone (DeiT-3) gets a row of zeros in front, for the class token.

    Such networks add the embedding before the class token joins, so zero is what the class token was given. As many
    rows as the image has patches tell them; where the size is unknown, a square number of rows does.
    """
    position, patches = state.get("pos_embed"), state.get("patch_embed.proj.weight")
    is_vit = "cls_token" in state and "blocks.0.mlp.fc3.weight" not in state
    if not is_vit or position is None or patches is None or position.dim() != 3 or patches.dim() != 4:
        return dict(state)
    rows = position.shape[1]
    if height_width is None or 0 in patches.shape:
        alone = rows > 1 and math.isqrt(rows) ** 2 == rows
    else:
        height, width = height_width
        alone = rows == (height // patches.shape[2]) * (width // patches.shape[3])
    if not alone:
        return dict(state)
    return dict(state) | {"pos_embed": torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)}


def _of_visionllama(name: str) -> str:
    block = re.fullmatch(r"(blocks\.\d+\.)(.+)", name)
    return name if block is None else block[1] + _VISIONLLAMA_NAMES.get(block[2], block[2])


def _renamed(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning looked up in the table; unknown names stay."""
    for theirs, ours in table.items():
        if name == theirs or name.startswith(theirs + "."):
            return ours + name.removeprefix(theirs)
    return name
