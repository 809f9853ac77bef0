"""What tests read of a run folder, and a run that stops half-way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from illama.errors import Stopped
from illama.recipes import Recipe
from illama.training.loop import Run, train

TIMED = ("images_per_s", "data_wait", "mfu", "memory_gb")  # depend on the clock and the machine


def weights(run_dir: Path, tag: str = "last", file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    """Tensors of a checkpoint."""
    return load_file(run_dir / "checkpoints" / tag / file)


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the figures that depend on the clock; empty where there is none yet."""
    metrics = run_dir / "metrics.jsonl"
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return [{key: value for key, value in json.loads(line).items() if key not in TIMED} for line in lines]


def same_weights(one: Path, other: Path, tag: str = "last", file: str = "model.safetensors") -> bool:
    """Whether two runs have the same tensors in a checkpoint, bit for bit."""
    a, b = weights(one, tag, file), weights(other, tag, file)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(one: Path, other: Path, file: str = "model.safetensors") -> float:
    """Norm of the difference of all weights of two runs, relative to the weights' norm."""
    a, b = weights(one, file=file), weights(other, file=file)
    apart = sum(float((a[name].double() - b[name].double()).square().sum()) for name in a)
    return (apart / sum(float(a[name].double().square().sum()) for name in a)) ** 0.5


def stopped_run(recipe: Recipe, out: Path, *, step: int = 6, **more: Any) -> Path:
    """Train into `out` up to a step, and end there as by a signal: saved, to be continued."""
    end_of_step = Run._end_of_step

    def ends(self: Run, at: int, *rest: Any) -> None:
        end_of_step(self, at, *rest)
        if at == step:
            self._save(rest[-1])
            self.keeper.saver.close()
            raise Stopped("as by a signal")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_end_of_step", ends)
        with pytest.raises(Stopped):
            train(recipe, out, device="cpu", **more)
    return out
