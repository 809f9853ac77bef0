"""What a run needs before its first step: data, schedules, the network. Nothing is written here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from illama.checkpoint import initialize_from
from illama.data import EvalTransform, build_eval_loader, build_train_loader, open_source
from illama.data.loader import EvalLoader, TrainLoader
from illama.data.source import Source
from illama.distributed import World
from illama.errors import UserError
from illama.models import ILlama
from illama.models.linear import keep_linear_kernel, linear_kernel
from illama.recipes import BatchPlan, Recipe, plan_batches
from illama.training.ema import WeightAverage
from illama.training.losses import Loss, build_loss
from illama.training.objective import shard_model
from illama.training.optim import build_adamw, param_groups
from illama.training.schedules import Schedules
from illama.training.state import TrainState


@dataclass(frozen=True)
class Parts:
    """A recipe's parts on one process.

    Attributes:
        plan: How a step is split.
        train_loader: This process's micro-batches.
        eval_loader: This process's share of the evaluation split.
        eval_source: The whole evaluation split.
        classes: Class names in index order.
        schedules: Everything that changes with the step.
        model: Newly initialised, or with the weights that the run starts from.
        loss: The criterion.
        notes: What people should know of them, line by line.
    """

    plan: BatchPlan
    train_loader: TrainLoader
    eval_loader: EvalLoader
    eval_source: Source
    classes: tuple[str, ...]
    schedules: Schedules
    model: ILlama
    loss: Loss
    notes: list[str]


def prepare(recipe: Recipe, device: torch.device, init_from: Path | None, world: World) -> Parts:
    """Open the data and build the network, with no word to the other processes.

    Args:
        recipe: What is trained.
        device: This process's own.
        init_from: Weights to start from.
        world: Which of how many processes this is.

    Raises:
        UserError: Data, weights or batch cannot be used.
    """
    plan, data = plan_batches(recipe, world.size), recipe.data
    train_source, eval_source = open_sources(recipe)
    train_loader = build_train_loader(recipe, train_source, device, plan, world.rank)
    transform, batch = EvalTransform.of(recipe), recipe.train.eval_batch
    eval_loader = build_eval_loader(eval_source, transform, batch, device, data.workers, data.worker_timeout_s, world)
    notes = [train_source.description, train_loader.description, eval_source.description]
    torch.manual_seed(recipe.seed)
    model = ILlama(recipe.model)
    if init_from is not None:
        notes.append(str(initialize_from(init_from, model)))
    return Parts(
        plan=plan,
        train_loader=train_loader,
        eval_loader=eval_loader,
        eval_source=eval_source,
        classes=train_source.classes,
        schedules=Schedules.of(recipe, train_loader.steps_per_epoch, lr=plan.lr),
        model=model.to(device),
        loss=build_loss(recipe.train.loss, recipe.augment),
        notes=notes,
    )


def build_state(recipe: Recipe, parts: Parts, device: torch.device, world: World) -> TrainState:
    """The optimizer and the averaged weights; with `train.parallel=fsdp` model and average become shards here.

    A collective. Drop path and matrix products become what one process with the whole batch would have.
    """
    optimizer, how, model = recipe.optimizer, recipe.train, parts.model
    average = None if how.ema_decay is None else WeightAverage(model, how.ema_decay)
    if how.parallel == "fsdp" and world.size > 1:
        shard_model(model, device, how.grad_reduce, compiled=how.compile)
        if average is not None:
            shard_model(average.model, device)
    rows = parts.train_loader.rows
    if rows is not None:
        model.share_drop_path(rows.to(device), parts.plan.draw_batch)
    if device.type == "cpu" and world.size > 1:
        keep_linear_kernel(world.broadcast(linear_kernel()))
    groups = param_groups(model, optimizer.weight_decay, optimizer.layer_decay)
    adamw = build_adamw(groups, betas=optimizer.betas, eps=optimizer.eps)
    return TrainState(model, adamw, average, device, world)


def open_sources(recipe: Recipe) -> tuple[Source, Source]:
    """The training and the evaluation split.

    Raises:
        UserError: They cannot be opened, or have another number of classes than the network.
    """
    channels, seed = recipe.model.in_chans, recipe.seed
    train_source = open_source(recipe.data, "train", in_chans=channels, seed=seed)
    classes = train_source.classes
    if len(classes) != recipe.model.num_classes:
        raise UserError(
            f"the data has {len(classes)} classes, model.num_classes is {recipe.model.num_classes}; "
            f"give model.num_classes={len(classes)}"
        )
    return train_source, open_source(recipe.data, "eval", in_chans=channels, classes=classes, seed=seed)
