"""Every packaged recipe trains: two steps at toy size, on image files, through the loop that trains all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from illama.recipes import Recipe, list_recipes, load_recipe
from illama.training.loop import train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes in folders, train and val, sizes as they come."""
    root = tmp_path_factory.mktemp("pictures")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee", "cat"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (50 + 10 * i, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


def at_toy_size(name: str, data: Path) -> Recipe:
    """What makes the recipe what it is stays: schedules' shapes, augmentation, loss, optimizer, drop path."""
    recipe = load_recipe(name)
    edits = {
        "model.img_size": 8 if recipe.data.name == "digits" else 48,
        "model.embed_dim": 16,
        "model.depth": 2,
        "model.num_heads": 2,
        "schedule.epochs": 2,
        "schedule.warmup_epochs": min(1, recipe.schedule.warmup_epochs),
        "schedule.softness.cutoff_epochs": min(1, recipe.schedule.softness.cutoff_epochs),
        "schedule.patch_drop.cutoff_epochs": min(1, recipe.schedule.patch_drop.cutoff_epochs),
        "schedule.mixing.cutoff_epochs": min(1, recipe.schedule.mixing.cutoff_epochs),
        "train.total_batch": 4,
        "train.device_batch": "null",
        "optimizer.lr_scaling": "none",
        "train.precision": "float32",
        "train.compile": "false",
        "train.cuda_graphs": "false",
        "data.workers": 0,
        "data.max_train_images": 4,
        "data.max_eval_images": 4,
        "train.log_every_steps": 1,
        "train.eval_every_epochs": 1,
    }
    if recipe.data.name != "digits":
        edits |= {"model.num_classes": 3, "data.path": data}
    return load_recipe(name, [f"{key}={value}" for key, value in edits.items()])


@pytest.mark.parametrize("name", list_recipes())
def test_two_steps(name: str, pictures: Path, tmp_path: Path) -> None:
    recipe = at_toy_size(name, pictures)
    result = train(recipe, tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert result.steps == len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)
    assert [line["count"] for line in lines if line["kind"] == "eval"] == [4, 4]
