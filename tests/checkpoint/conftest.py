"""A model small enough to save and load within milliseconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from illama.checkpoint import Checkpoint, Meta, load_checkpoint
from illama.models import ILlama, ModelConfig

SMALL = ModelConfig(img_size=8, patch_size=2, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2)


@pytest.fixture
def config() -> ModelConfig:
    return SMALL


@pytest.fixture
def model() -> ILlama:
    torch.manual_seed(0)
    return ILlama(SMALL)


@pytest.fixture
def meta() -> Meta:
    return Meta(config=SMALL, classes=("ant", "bee", "cat"), eval_transform={"mode": "none"}, softness=0.25, step=7)


def loaded(run: Path, tag: str = "last", *, verify: bool = True) -> Checkpoint:
    """A checkpoint that has to be there."""
    checkpoint = load_checkpoint(run, tag, verify=verify)
    assert checkpoint is not None
    return checkpoint
