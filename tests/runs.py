"""What tests read of a run folder, and a run that stops half-way."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from illama.checkpoint.folder import FILE_BYTES, FILE_SUMS, META_FILE, OWN_SUM, _sum_of
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


def sum_again(checkpoint: Path) -> None:
    """Sums and sizes in a checkpoint's meta.json that fit its files, as made by whoever changed one."""
    meta = json.loads((checkpoint / META_FILE).read_text())
    files = {name: (checkpoint / name).read_bytes() for name in meta[FILE_SUMS]}
    meta[FILE_SUMS] = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    meta[FILE_BYTES] = {name: len(content) for name, content in files.items()}
    write_meta(checkpoint, meta)


def write_meta(checkpoint: Path, meta: dict[str, Any]) -> None:
    """Write meta.json with a sum of itself that fits."""
    meta = json.loads(json.dumps({key: value for key, value in meta.items() if key != OWN_SUM}))
    (checkpoint / META_FILE).write_text(json.dumps(meta | {OWN_SUM: _sum_of(meta)}))


def stopped_run(recipe: Recipe, out: Path, *, step: int = 6, **more: Any) -> Path:
    """Train into `out` up to a step, and end there as by a signal: saved, to be continued."""
    end_of_step = Run._end_of_step

    def ends(self: Run, at: int, *rest: Any) -> Any:
        evaluation = end_of_step(self, at, *rest)
        if at == step:
            self._save(*rest)
            self.keeper.saver.close()
            raise Stopped("as by a signal")
        return evaluation

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_end_of_step", ends)
        with pytest.raises(Stopped):
            train(recipe, out, device="cpu", **more)
    return out
