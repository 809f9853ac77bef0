"""A running mean of the weights (EMA), with the counter that its warm-up depends on."""

from __future__ import annotations

import copy

import torch

from illama.distributed import is_sharded
from illama.models import ILlama


class WeightAverage:
    """Exponential moving average of a model's parameters, a model of its own.

    Update n (from 0) uses the decay min(decay, (1 + n) / (10 + n)), so that early averages are not dominated by
    the initial weights.

    Attributes:
        model: A copy of the model that holds the averaged weights, in evaluation mode.
        updates: Number of updates so far.
    """

    def __init__(self, model: ILlama, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: ILlama) -> None:
        """Move the average towards the model's present weights; of a sharded model each process moves its shards."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(_own(self.model), _own(model), 1.0 - decay)
        self.updates += 1


def _own(model: ILlama) -> list[torch.Tensor]:
    return [p.to_local() if is_sharded(p) else p for p in model.parameters()]
