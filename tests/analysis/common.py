"""Small networks of many kinds with images for them; the digits as analyses get them; logits of no network."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from illama.checkpoint import Meta
from illama.data import EvalTransform, open_source
from illama.evaluation import SavedLogits
from illama.evaluation.subject import Subject
from illama.models import ILlama, ModelConfig
from illama.recipes import load_recipe

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


def digits_subject(softness: float = 0.0, **edits: Any) -> Subject:
    """A small untrained network, and the evaluation split of the digits."""
    recipe = load_recipe("digits_micro")
    config = dataclasses.replace(recipe.model, **({"embed_dim": 32, "depth": 2, "num_heads": 2} | edits))
    model = ILlama(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.set_softness(softness)
    return Subject(
        model=model,
        meta=Meta(config=config),
        name="made up",
        weights="weights that were never trained",
        given=open_source(recipe.data, "eval", in_chans=config.in_chans, classes=None, seed=0),
        transform=EvalTransform.of(recipe),
        device=torch.device("cpu"),
        data=recipe.data,
        batch_size=16,
    )


def some_saved(
    images: int = 60, num_classes: int = 4, *, skill: float = 1.5, seed: int = 0, **edits: Any
) -> SavedLogits:
    """Random logits, those of the right class larger by `skill`; the right classes depend on no argument."""
    targets = np.random.default_rng(0).integers(0, num_classes, images)
    logits = np.random.default_rng(seed + 1).normal(size=(images, num_classes))
    logits[np.arange(images), targets] += skill
    parts: dict[str, Any] = {
        "logits": logits.astype(np.float32),
        "targets": targets,
        "indices": np.arange(images),
        "classes": tuple(f"class {number}" for number in range(num_classes)),
        "data": "some images",
        "data_id": "1234",
        "weights": f"network {seed}",
    }
    return SavedLogits(**(parts | edits))
