"""The loss of a batch: forward pass and criterion as one function, eager or compiled as one graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from illama.device import Precision, autocast
from illama.errors import UserError
from illama.training.losses import Loss

Objective = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_objective(
    model: nn.Module,
    loss: Loss,
    device: torch.device,
    precision: Precision,
    *,
    compiled: bool = False,
    cuda_graphs: bool = False,
) -> Objective:
    """The training loss as a function of (images, targets).

    Args:
        model: Maps images to logits.
        loss: From `build_loss`.
        device: Where both run.
        precision: "float32", or "bf16" for autocast around the forward pass.
        compiled: Whether `torch.compile` makes one graph of it; a graph break is an error. Softness, drop path and
            learning rate may change without a new compilation.
        cuda_graphs: Whether the compiled kernels are replayed as CUDA graphs, which saves their launches.

    Raises:
        UserError: CUDA graphs on another device.
    """

    def objective(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with autocast(device, precision):
            logits = model(images)
        return loss(logits.float(), targets)

    if not compiled:
        return objective
    if not cuda_graphs:
        return torch.compile(objective, fullgraph=True)
    if device.type != "cuda":
        raise UserError(f"train.cuda_graphs needs a CUDA device, this is {device}; give train.cuda_graphs=false")
    graph = torch.compile(objective, fullgraph=True, mode="reduce-overhead")

    def replayed(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return graph(images, targets).clone()  # the next replay writes to the same memory

    return replayed
