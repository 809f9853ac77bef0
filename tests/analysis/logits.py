"""Saved logits of networks that do not exist."""

from __future__ import annotations

from typing import Any

import numpy as np

from illama.evaluation import SavedLogits


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
