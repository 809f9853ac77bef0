"""A network and scikit-learn's digits, as analyses get them."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from illama.checkpoint import Meta
from illama.data import EvalTransform, open_source
from illama.evaluation.subject import Subject
from illama.models import ILlama
from illama.recipes import load_recipe


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
