"""Whole tensors from a sharded model's state and back, so that there is one checkpoint format for every number of
processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from illama.distributed import is_sharded

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


def load_weights(model: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
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
