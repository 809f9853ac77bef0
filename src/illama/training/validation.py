"""Judging a run on the way: accuracy at the softness in force, at softness 0, and of the averaged weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from illama.data import EvalLoader
from illama.device import Precision, autocast
from illama.distributed import ALONE, World, is_sharded
from illama.evaluation import evaluate_together
from illama.models import ILlama
from illama.training.state import WeightAverage


@dataclass(frozen=True)
class Validation:
    """What every evaluation of a run shares."""

    loader: EvalLoader
    device: torch.device
    precision: Precision
    world: World = ALONE
    compiled: bool = False
    _graphs: dict[ILlama, Any] = field(default_factory=dict)

    def __call__(self, model: ILlama, average: WeightAverage | None, *, step: int, epoch: int) -> dict[str, Any]:
        """One record of metrics.jsonl; accuracies in percent, losses in nats.

        `top1` and `loss` hold at the softness in force, `top1_causal` and `loss_causal` at softness 0, the keys
        `ema_*` for the averaged weights at the softness in force.
        """
        softness = float(model.softness)
        asked: list[tuple[ILlama, float | None]] = [(model, softness)]
        if softness:
            asked.append((model, 0.0))
        if average is not None:
            asked.append((average.model, softness))
        with autocast(self.device, self.precision):
            results = evaluate_together(asked, self.loader, model.num_classes, world=self.world, forward=self._forward)
        result, causal = results[0], results[1 if softness else 0]
        record: dict[str, Any] = {
            "kind": "eval",
            "step": step,
            "epoch": epoch,
            "softness": softness,
            "top1": result.top1,
            "top5": result.top5,
            "loss": result.loss,
            "top1_causal": causal.top1,
            "loss_causal": causal.loss,
            "count": result.count,
            "skipped": len(result.skipped),
        }
        if average is not None:
            averaged = results[-1]
            record |= {"ema_top1": averaged.top1, "ema_loss": averaged.loss, "ema_updates": average.updates}
        return record

    def _forward(self, model: ILlama, images: torch.Tensor) -> torch.Tensor:
        """The logits; whole batches by one compiled graph for all values of softness, where the recipe compiles.

        What is left of a pass would need a graph of its own. A sharded model's blocks are compiled already.
        """
        if not self.compiled or len(images) != self.loader.batch_size or is_sharded(model):
            return model(images)
        if model not in self._graphs:
            self._graphs[model] = torch.compile(model, fullgraph=True)
        return self._graphs[model](images)


def in_words(record: dict[str, Any]) -> str:
    """An evaluation record as a line for people."""
    line = f"epoch {record['epoch']}: top-1 {record['top1']:.2f} %  test loss {record['loss']:.4f}"
    if record["softness"]:
        line += f"  (softness {record['softness']:.2f}; {record['top1_causal']:.2f} % at softness 0)"
    if record["skipped"]:
        line += f"  ({record['skipped']} unreadable images left out)"
    if "ema_top1" in record:
        line += f"  averaged weights {record['ema_top1']:.2f} %"
    return line
