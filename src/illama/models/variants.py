"""Variants as rows: the family, the steps of the paper's roadmap, and the peer. No torch here."""

from __future__ import annotations

import dataclasses
from typing import Any

from illama.models.config import ModelConfig
from illama.registry import Registry

# The family (the paper's Table 6); everything else is ModelConfig's default.
VARIANTS: Registry[ModelConfig] = Registry(
    "model variant",
    {
        "tiny": ModelConfig(embed_dim=192, depth=12, num_heads=3),
        "small": ModelConfig(embed_dim=384, depth=12, num_heads=6),
        "base": ModelConfig(embed_dim=768, depth=12, num_heads=12),
        "large": ModelConfig(embed_dim=1024, depth=24, num_heads=16),
    },
)

# The roadmap from ViT to iLLaMA (Table 17) and the modified mask (Table 1), each as edits of a variant.
_VIT: dict[str, Any] = {
    "ffn": "mlp",
    "norm": "layer",
    "mask": "none",
    "cls_position": "first",
    "position": "learned",
}
_FFN = _VIT | {"ffn": "swiglu"}
_NORM = _FFN | {"norm": "rms"}
_ATTENTION = _NORM | {"mask": "causal"}
_PS_CLS = _ATTENTION | {"cls_position": "last"}
_ROPE = _PS_CLS | {"position": "rope"}
ROADMAP: Registry[dict[str, Any]] = Registry(
    "roadmap row",
    {
        "vit": _VIT,
        "llama_ffn": _FFN,
        "llama_norm": _NORM,
        "llama_attention": _ATTENTION,
        "ps_cls": _PS_CLS,
        "llama_position": _ROPE,
        "learned_position": _ROPE | {"position": "learned+rope"},
        "modified_causal": _ATTENTION | {"mask": "modified_causal"},
    },
)

# VisionLLaMA-plain (arXiv 2403.00522), as edits of a variant; the drop-path rate is the same in every block.
PEERS: Registry[dict[str, Any]] = Registry(
    "peer model",
    {
        "visionllama": {
            "norm": "layer",
            "mask": "none",
            "cls_position": "first",
            "position": "rope2d",
            "layer_scale": 1e-4,
            "drop_path_shape": "constant",
        }
    },
)


def roadmap_config(row: str, variant: str = "tiny", **edits: Any) -> ModelConfig:
    """The configuration of one roadmap row or peer at the size of one variant.

    Args:
        row: A name of `ROADMAP` or `PEERS`.
        variant: A name of `VARIANTS`.
        **edits: Further fields of `ModelConfig`.
    """
    changes = PEERS[row] if row in PEERS else ROADMAP[row]
    return dataclasses.replace(VARIANTS[variant], **(changes | edits))
