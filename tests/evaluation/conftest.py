"""A saved model with classes and an evaluation transform, untrained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from illama.checkpoint import Meta, save_checkpoint
from illama.data import EvalTransform
from illama.models import ILlama
from illama.recipes import load_recipe


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose weights were never trained; nothing is written into it."""
    return untrained_digits_run(tmp_path_factory.mktemp("runs") / "digits")


def untrained_digits_run(folder: Path) -> Path:
    """The same in a folder of one's own."""
    recipe = load_recipe("digits_micro")
    torch.manual_seed(0)
    model = ILlama(recipe.model)
    torch.nn.init.normal_(model.head.weight)
    meta = Meta(
        config=recipe.model,
        classes=tuple(map(str, range(10))),
        eval_transform=EvalTransform.of(recipe).to_dict(),
        softness=0.5,
        recipe=recipe.to_dict(),
    )
    save_checkpoint(folder, "last", model_state=model.state_dict(), training_state={}, meta=meta)
    return folder
