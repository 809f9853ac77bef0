"""Small folders of coloured pictures, a recipe that learns them in seconds; figures that are not drawn."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from illama.recipes import Recipe, load_recipe

TINY = (
    *("model.img_size=16", "model.patch_size=4", "model.in_chans=3", "model.embed_dim=16", "model.depth=1"),
    *("model.num_heads=2", "model.drop_path=0", "model.num_classes=auto"),
    *("data.name=auto", "data.workers=0", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"),
    *("schedule.epochs=3", "schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=1"),
    *("train.total_batch=4", "train.log_every_steps=1", "train.eval_batch=8", "train.precision=float32"),
    *("optimizer.lr=1e-2", "optimizer.lr_batch=4", "optimizer.min_lr=0.0"),
)


DRAW = Figure.savefig


def draw_blank(figure: Figure, file: Any, **how: Any) -> None:
    """`Figure.savefig` of the suite: its two PNGs would be half of a toy run, and no test looks at them that does not
    ask for the fixture `drawing`."""
    if how.get("format") == "png":
        Image.new("L", (8, 8)).save(file, "png")
    else:
        DRAW(figure, file, **how)


def paint(root: Path, counts: Mapping[str, int], size: int = 20) -> Path:
    """Pictures of one colour for each folder (split/CLASS, or CLASS) below `root`, numbered from 0; returns `root`.

    Args:
        root: Made where it is not there.
        counts: How many for each folder.
        size: Pixels at each side.
    """
    kinds = sorted({folder.rpartition("/")[2] for folder in counts})
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(kinds.index(folder.rpartition("/")[2]))
        colour = random.integers(0, 256, 3)
        for i in range(count):
            noise = np.random.default_rng(i).integers(-20, 20, (size, size, 3))
            Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8)).save(root / folder / f"{i}.png")
    return root


def tiny(data: Path | str, *changes: str) -> Recipe:
    """The recipe on a data set, 16 px and one block."""
    return load_recipe("digits_micro", [*TINY, f"data.path={data}", *changes])


def tiny_words(data: Path | str, *changes: str) -> list[str]:
    """The same as the words of a command."""
    return ["train", "digits_micro", *TINY, *changes, "--data", str(data), "--device", "cpu"]
