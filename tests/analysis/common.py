"""Small networks of many kinds, in double precision, and images for them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from illama.models import ILlama, ModelConfig

TOY: dict[str, Any] = {
    "img_size": (6, 4),  # 3 rows and 2 columns of patches: a transposed grid would show
    "patch_size": 2,
    "in_chans": 2,
    "num_classes": 5,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}
KINDS: dict[str, dict[str, Any]] = {
    "published": {},
    "pre_softmax": {"mask_mode": "pre_softmax"},
    "class first": {"cls_position": "first", "position": "learned"},
    "class first, pre_softmax": {"cls_position": "first", "position": "learned", "mask_mode": "pre_softmax"},
    "modified mask": {"cls_position": "first", "position": "rope", "mask": "modified_causal"},
    "peer": {
        "cls_position": "first",
        "position": "rope2d",
        "mask": "none",
        "norm": "layer",
        "layer_scale": 0.5,
        "embed_dim": 16,
    },
    "depth 1": {"depth": 1},
    "mean of the patches": {"global_pool": "avg"},
    "blocked": {"attention_backend": "blocked"},
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def network(softness: float = 0.0, **edits: Any) -> ILlama:
    """A network with weights large enough that attention is far from uniform, in training mode as it comes."""
    model = ILlama(ModelConfig(**(TOY | edits))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.set_softness(softness)
    return model


def some_images(count: int = 5) -> torch.Tensor:
    return torch.randn(count, 2, 6, 4, dtype=torch.float64)
