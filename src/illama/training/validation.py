"""Judging a run on the way: at the softness in force, at softness 0, and with the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from illama.data import EvalLoader
from illama.device import Precision, autocast
from illama.distributed import ALONE, World, is_sharded
from illama.models import ILlama
from illama.tasks import Score
from illama.tasks.task import Task
from illama.training.state import WeightAverage

# What a record holds beside scores.
NO_SCORES = ("kind", "step", "epoch", "softness", "count", "skipped", "ema_updates")


@dataclass(frozen=True)
class Validation:
    """What every evaluation of a run shares."""

    task: Task
    score: Score
    loader: EvalLoader
    device: torch.device
    precision: Precision
    world: World = ALONE
    compiled: bool = False
    _graphs: dict[ILlama, Any] = field(default_factory=dict)

    def __call__(self, model: ILlama, average: WeightAverage | None, *, step: int, epoch: int) -> dict[str, Any]:
        """One record of metrics.jsonl; losses in nats.

        The task's scores hold at the softness in force; its first one and the loss are there at softness 0 as well
        ("_causal"), and of the averaged weights at the softness in force ("ema_").
        """
        softness, key = float(model.softness), self.score.key
        asked: list[tuple[ILlama, float | None]] = [(model, softness)]
        if softness:
            asked.append((model, 0.0))
        if average is not None:
            asked.append((average.model, softness))
        with autocast(self.device, self.precision):
            judgements = self.task.judge(asked, self.loader, self.world, self._forward)
        judged, causal = judgements[0], judgements[1 if softness else 0].scores
        record = {
            "kind": "eval",
            "step": step,
            "epoch": epoch,
            "softness": softness,
            **judged.scores,
            self.score.causal_key: causal[key],
            "loss_causal": causal["loss"],
            "count": judged.count,
            "skipped": len(judged.skipped),
        }
        if average is not None:
            averaged = judgements[-1].scores
            record |= {f"ema_{key}": averaged[key], "ema_loss": averaged["loss"], "ema_updates": average.updates}
        return record

    def in_words(self, record: dict[str, Any]) -> str:
        """An evaluation record as a line for people."""
        score, softness = self.score, record["softness"]
        line = (
            f"epoch {record['epoch']}: {score.title} {score.shown(record[score.key])}  test loss {record['loss']:.4f}"
        )
        if softness:
            line += f"  (softness {softness:.2f}; {score.shown(record[score.causal_key])} at softness 0)"
        if record["skipped"]:
            line += f"  ({record['skipped']} unreadable images left out)"
        if "ema_updates" in record:
            line += f"  averaged weights {score.shown(record[f'ema_{score.key}'])}"
        return line

    def _forward(self, model: ILlama, images: torch.Tensor) -> torch.Tensor:
        """The output; whole batches by one compiled graph for all values of softness, where the recipe compiles.

        What is left of a pass would need a graph of its own. A sharded model's blocks are compiled already.
        """
        if not self.compiled or len(images) != self.loader.batch_size or is_sharded(model):
            return model(images)
        if model not in self._graphs:
            self._graphs[model] = torch.compile(model, fullgraph=True)
        return self._graphs[model](images)
