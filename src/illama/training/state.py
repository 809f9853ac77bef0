"""All that a run needs to go on exactly where it stopped."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from illama import native
from illama.checkpoint import Checkpoint
from illama.device.linear import keep_linear_kernels, linear_kernels
from illama.distributed import ALONE, World
from illama.models import ILlama
from illama.training.ema import WeightAverage
from illama.training.shards import load_optimizer, load_weights, whole


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
    """What a checkpoint holds beside the weights, by name: optimizer, average, progress, pending loss.

    Random numbers are not among it: data order, augmentation and drop path are functions of seed and step.
    """

    model: ILlama
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    device: torch.device
    world: World = ALONE
    progress: Progress = field(default_factory=Progress)
    loss_sum: torch.Tensor = field(init=False)  # this process's part since the last log line, on the device
    loss_steps: int = 0

    def __post_init__(self) -> None:
        self.loss_sum = torch.zeros((), device=self.device)

    def mean_loss(self) -> float:
        """Mean loss of all processes since it was last asked for. A collective; waits for the device."""
        mean = float(self.world.sum_(self.loss_sum)) / self.loss_steps
        self.loss_sum.zero_()
        self.loss_steps = 0
        return mean

    def to_dict(self) -> dict[str, Any]:
        """Whole tensors and plain containers, readable with `weights_only=True`. A collective."""
        self._hand_loss_to_rank_0()
        return {
            "optimizer": whole(self.optimizer.state_dict()),
            "average_updates": None if self.average is None else self.average.updates,
            "progress": dict(vars(self.progress)),
            "loss_sum": self.loss_sum,
            "loss_steps": self.loss_steps,
            "linear_kernel": linear_kernels() if self.device.type == "cpu" else None,
            "native": native.kernels() is not None if self.device.type == "cpu" else None,
            "processes": self.world.size,
        }

    def weights(self) -> dict[str, torch.Tensor]:
        """The model's state_dict in whole tensors. A collective."""
        return whole(self.model.state_dict())

    def average_weights(self) -> dict[str, torch.Tensor] | None:
        """The averaged model's state_dict in whole tensors, where there is one. A collective."""
        return None if self.average is None else whole(self.average.model.state_dict())

    def load(self, saved: Checkpoint) -> None:
        """Take over what `weights`, `average_weights` and `to_dict` gave, by however many processes they were saved."""
        state = saved.training_state
        if state.get("linear_kernel") is not None:
            keep_linear_kernels(state["linear_kernel"])
            native.keep(bool(state.get("native")))  # earlier versions had none
        load_weights(self.model, saved.model_state)
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None and saved.ema_state is not None:
            load_weights(self.average.model, saved.ema_state)
            self.average.updates = state["average_updates"]
        self.progress = Progress(**state["progress"])
        self.loss_sum = state["loss_sum"].to(self.device) * self.world.is_main
        self.loss_steps = state["loss_steps"]

    def _hand_loss_to_rank_0(self) -> None:
        """As a continued run has it: otherwise its next log line would differ in the last bits."""
        self.world.sum_(self.loss_sum)
        if not self.world.is_main:
            self.loss_sum.zero_()
