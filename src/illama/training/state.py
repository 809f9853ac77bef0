"""All that a run needs to go on exactly where it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from illama.models.linear import keep_linear_kernel, linear_kernel
from illama.training.ema import WeightAverage


@dataclass
class Progress:
    """Where a run stands; saved as plain values.

    Attributes:
        step: Optimizer steps done.
        best: Highest top-1 in percent so far, at the softness the run ends with; None before the first evaluation.
        log_bytes: Length of metrics.jsonl that belongs to this state; what a crash left behind it is cut off.
        seconds: Time spent training so far, all sittings together.
    """

    step: int = 0
    best: float | None = None
    log_bytes: int = 0
    seconds: float = 0.0


@dataclass
class TrainState:
    """What a checkpoint holds beside the weights, by name: optimizer, average, progress, pending loss, RNG."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    loss_sum: torch.Tensor = field(init=False)  # since the last log line, on the device
    loss_steps: int = 0

    def __post_init__(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, readable with `weights_only=True`."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "average_updates": None if self.average is None else self.average.updates,
            "progress": dict(vars(self.progress)),
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "rng": rng_state(self.device),
            "linear_kernel": linear_kernel() if self.device.type == "cpu" else None,
        }

    def load(self, saved: dict[str, Any], ema_state: dict[str, torch.Tensor] | None) -> None:
        """Take over what `to_dict` wrote; the model's weights are loaded by the caller."""
        if saved.get("linear_kernel") is not None:
            keep_linear_kernel(saved["linear_kernel"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.average is not None and ema_state is not None:
            self.average.load(ema_state, saved["average_updates"])
        self.progress = Progress(**saved["progress"])
        self.loss_sum = saved["loss_sum"].to(self.device)
        self.loss_steps = saved["loss_steps"]
        set_rng_state(saved["rng"], self.device)


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """States of the generators that drop path and dropout draw from (data order and augmentation need none)."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_rng_state(states: dict[str, torch.Tensor], device: torch.device) -> None:
    """Put back what `rng_state` read; a generator of another device is left as it is."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])
