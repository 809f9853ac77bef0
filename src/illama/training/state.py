"""All that a run needs to go on exactly where it stopped, with the weights' running mean; whole tensors from shards."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from illama import native
from illama.checkpoint import Checkpoint
from illama.device.linear import keep_linear_kernels, linear_kernels
from illama.distributed import ALONE, World, is_sharded
from illama.models import ILlama

T = TypeVar("T")


def whole(value: T) -> T:
    """Nested containers with every sharded tensor put together, on the CPU; plain tensors stay as they are.

    A collective: all processes have to call it.
    """
    if is_sharded(value):
        return value.full_tensor().cpu()
    if isinstance(value, Mapping):
        return {key: whole(part) for key, part in value.items()}  # type: ignore[return-value]
    if isinstance(value, list | tuple):
        return type(value)(whole(part) for part in value)
    return value


def shard_like(value: Tensor, example: Tensor) -> Tensor:
    """A whole tensor cut as `example` is; the tensor itself where that is not sharded or has another shape."""
    if not is_sharded(example) or value.shape != example.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    on_device = value.to(example.device_mesh.device_type)
    return distribute_tensor(on_device, example.device_mesh, example.placements, src_data_rank=None)


def put_weights(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors into a model that may be sharded."""
    examples = model.state_dict()
    model.load_state_dict({name: shard_like(tensor, examples[name]) for name, tensor in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """`load_state_dict` of whole tensors into an optimizer whose parameters may be sharded.

    Moments alone are taken over: the hyperparameters of the groups are the recipe's, whatever the file says.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {
            key: shard_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in entry.items()
        }
        for number, entry in saved["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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


@dataclass
class Progress:
    """Where a run stands; saved as plain values.

    Attributes:
        step: Optimizer steps done.
        best: Best score so far, at the softness the run ends with; None before the first evaluation.
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
        put_weights(self.model, saved.model_state)
        load_optimizer(self.optimizer, state["optimizer"])
        if self.average is not None and saved.ema_state is not None:
            put_weights(self.average.model, saved.ema_state)
            self.average.updates = state["average_updates"]
        self.progress = Progress(**state["progress"])
        if self.world.is_main:  # it is the sum of all processes' parts
            self.loss_sum = state["loss_sum"].to(self.device)
        self.loss_steps = state["loss_steps"]

    def _hand_loss_to_rank_0(self) -> None:
        """As a continued run has it: otherwise its next log line would differ in the last bits."""
        self.world.sum_(self.loss_sum)
        if not self.world.is_main:
            self.loss_sum.zero_()
