"""The loss of a batch: forward pass and criterion as one module, eager or compiled, on one process or several."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from illama.device import Precision, autocast
from illama.distributed import ALONE, World, is_sharded
from illama.errors import UserError
from illama.models import ILlama
from illama.tasks.task import Loss

# Every process sets the same softness and has the same tables, so buffers need not be sent in each forward pass.
_NO_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    # its name before torch 2.13
    else "broadcast_buffers": False
}


class _LossOfBatch(nn.Module):
    def __init__(self, model: nn.Module, loss: Loss, device: torch.device, precision: Precision) -> None:
        super().__init__()
        self.model = model
        self._loss = loss
        self._device, self._precision = device, precision

    def forward(self, images: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        with autocast(self._device, self._precision):
            logits = self.model(images) if kept is None else self.model(images, kept)
        return self._loss(logits.float(), targets)


class Objective:
    """The training loss as a function of (images, targets, kept patches), 0-d float32; of several processes each has
    its own.

    Gradients of several processes are averaged in the backward pass; `exchanging` says when.
    """

    def __init__(self, module: nn.Module, model: nn.Module, *, cuda_graphs: bool = False) -> None:
        self._module = module
        self._sharded = model if is_sharded(model) else None
        self._cuda_graphs = cuda_graphs

    def __call__(self, images: torch.Tensor, targets: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        if not self._cuda_graphs:
            return self._module(images, targets, kept)
        torch.compiler.cudagraph_mark_step_begin()
        return self._module(images, targets, kept).clone()  # the next replay writes to the same memory

    def prepare_gradients(self, accumulation: int) -> bool:
        """Whether gradients are set to None after a step; before the first one, make room for those that are not.

        A gradient that is None takes over the memory that a replayed graph wrote it to, and the next micro-batch's
        replay writes there again (pytorch#169545). Zeros that stay are added to.
        """
        if not self._cuda_graphs or accumulation == 1:
            return True
        for parameter in self._module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        return False

    def exchanging(self, exchange: bool) -> AbstractContextManager[object]:
        """Whether the gradients of this micro-batch are exchanged; of an accumulated step only the last one's are."""
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(exchange)
        elif isinstance(self._module, DistributedDataParallel) and not exchange:
            return self._module.no_sync()
        return nullcontext()


def build_objective(
    model: nn.Module,
    loss: Loss,
    device: torch.device,
    precision: Precision,
    *,
    compiled: bool = False,
    cuda_graphs: bool = False,
    world: World = ALONE,
    grad_reduce: Literal["float32", "bf16"] = "float32",
) -> Objective:
    """The training loss as a function of (images, targets, kept patches or None).

    Args:
        model: Maps images to logits; already cut into shards (`shard_model`) where the recipe says so.
        loss: The task's.
        device: Where both run.
        precision: "float32", or "bf16" for autocast around the forward pass.
        compiled: Whether `torch.compile` makes one graph of it; a graph break is an error. Softness, drop path and
            learning rate may change without a new compilation. (A sharded model's blocks are compiled one by one.)
        cuda_graphs: Whether the compiled kernels are replayed as CUDA graphs, which saves their launches.
        world: The processes that share a step.
        grad_reduce: Type in which they add up their gradients.

    Raises:
        UserError: CUDA graphs on another device, or for several processes.
    """
    module: nn.Module = _LossOfBatch(model, loss, device, precision)
    sharded = is_sharded(model)
    if cuda_graphs and compiled and (device.type != "cuda" or world.size > 1):
        where = f"this is {device}" if world.size == 1 else f"these are {world.size} processes"
        raise UserError(f"train.cuda_graphs needs one process on CUDA, {where}; give train.cuda_graphs=false")
    if compiled and not sharded:
        module.compile(fullgraph=True, mode="reduce-overhead" if cuda_graphs else None)
    if world.size > 1 and not sharded:
        replicas = DistributedDataParallel(module, gradient_as_bucket_view=True, **_NO_BUFFERS)
        if grad_reduce == "bf16":
            if device.type != "cuda":
                raise UserError(f"train.grad_reduce=bf16 needs CUDA, this is {device}; give train.grad_reduce=float32")
            replicas.register_comm_hook(None, bf16_compress_hook)
        module = replicas
    return Objective(module, model, cuda_graphs=compiled and cuda_graphs)


def shard_model(
    model: ILlama,
    device: torch.device,
    grad_reduce: Literal["float32", "bf16"] = "float32",
    *,
    precision: Precision = "float32",
    compiled: bool = False,
) -> None:
    """Cut a model's weights into shards over all processes (FSDP2), block by block, in place.

    Args:
        model: On `device`, with the same weights on every process.
        device: This process's own.
        grad_reduce: Type in which gradients are added up.
        precision: With "bf16" the weights of the blocks travel as that, half as many bytes; shards stay float32.
        compiled: Whether each block is compiled.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = torch.distributed.init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    reduce_dtype = torch.bfloat16 if grad_reduce == "bf16" else torch.float32
    whole = MixedPrecisionPolicy(reduce_dtype=reduce_dtype)
    # Autocast rounds these weights to bf16 anyway, all but those of norms. The residual stream stays float32, and with
    # it the embeddings, where it begins.
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype, cast_forward_inputs=False)
    for block in model.blocks:
        if compiled:
            block.compile(fullgraph=True)
        fully_shard(block, mesh=mesh, mp_policy=half if precision == "bf16" else whole)
    fully_shard(model, mesh=mesh, mp_policy=whole)
