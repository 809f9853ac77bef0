"""What a run needs before its first step: data, schedules, the network. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from illama import native
from illama.console.text import shown
from illama.data import EvalLoader, EvalTransform, TrainLoader
from illama.data.source import Source
from illama.device import Precision
from illama.device.linear import keep_linear_kernels, linear_kernels
from illama.distributed import World
from illama.evaluation.origin import Start, run_of, tensors_id
from illama.models import ILlama
from illama.recipes import BatchPlan, Recipe, plan_batches
from illama.tasks import TASKS, Score
from illama.tasks.fit import short_run
from illama.tasks.task import Loss, Task
from illama.training.objective import shard_model
from illama.training.optim import MuonWithAdamW, build_adamw, param_groups
from illama.training.schedules import Schedules
from illama.training.state import TrainState, WeightAverage
from illama.weights.adapt import LoadReport, adapt_weights
from illama.weights.foreign import read_weights
from illama.weights.load import locate


@dataclass(frozen=True)
class Parts:
    """A recipe's parts on one process.

    Attributes:
        task: What is learned.
        score: What the task's runs are judged by.
        recipe: With the number of classes that the data has.
        plan: How a step is split.
        train_loader: This process's micro-batches.
        eval_loader: This process's share of the evaluation split.
        eval_source: The whole evaluation split.
        train_source: All training images.
        start: The weights that the model has; None for a newly initialised one.
        schedules: Everything that changes with the step.
        model: Newly initialised, or with the weights that the run starts from.
        loss: The criterion.
        notes: What people should know of them, line by line.
    """

    task: Task
    score: Score
    recipe: Recipe
    plan: BatchPlan
    train_loader: TrainLoader
    eval_loader: EvalLoader
    eval_source: Source
    train_source: Source
    start: Start | None
    schedules: Schedules
    model: ILlama
    loss: Loss
    notes: list[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order."""
        return self.train_source.classes


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
    entry = TASKS[recipe.task]
    task = entry.load()
    loss, opened = task.loss(recipe), task.open(recipe, world.size)
    recipe, train_source, eval_source = opened.recipe, opened.train, opened.evaluated
    plan, data = plan_batches(recipe, world.size), recipe.data
    train_loader = TrainLoader(recipe, train_source, device, plan, world.rank, task.targets)
    transform, how = EvalTransform.of(recipe), (data.workers, data.worker_timeout_s, world, task.targets)
    eval_loader = EvalLoader(eval_source, transform, recipe.train.eval_batch, device, *how)
    notes = [
        *opened.notes,
        *(train_source.description, train_loader.description, eval_source.description),
    ]
    torch.manual_seed(recipe.seed)
    model, start = task.build_model(recipe), None
    if init_from is None:
        notes += filter(None, [short_run(train_loader.steps_per_epoch, recipe.schedule.epochs)])
    else:
        start, report = start_from(init_from, model, train_source.classes)
        notes.append(f"starting from {shown(start.name)} ({shown(start.given)}): {report}")
    return Parts(
        task=task,
        score=entry.score,
        recipe=recipe,
        plan=plan,
        train_loader=train_loader,
        eval_loader=eval_loader,
        eval_source=eval_source,
        train_source=train_source,
        start=start,
        schedules=Schedules.of(recipe, train_loader.steps_per_epoch, lr=plan.lr),
        model=model.to(device),
        loss=loss,
        notes=notes,
    )


def build_state(parts: Parts, device: torch.device, world: World, precision: Precision) -> TrainState:
    """The optimizer and the averaged weights; with `train.parallel=fsdp` model and average become shards here.

    A collective. Drop path and matrix products become what one process with the whole batch would have.
    """
    optimizer, how, model = parts.recipe.optimizer, parts.recipe.train, parts.model
    average = None if how.ema_decay is None else WeightAverage(model, how.ema_decay)
    if how.parallel == "fsdp" and world.size > 1:
        shard_model(model, device, how.grad_reduce, precision=precision, compiled=how.compile)
        if average is not None:
            shard_model(average.model, device, precision=precision)
    share = parts.train_loader.share
    if share.rows is not None:
        model.share_drop_path(share.rows.to(device), share.total)
    if device.type == "cpu" and world.size > 1:
        keep_linear_kernels(world.broadcast(linear_kernels(model)))
        native.keep(world.broadcast(native.kernels() is not None))
    muon = optimizer.name == "muon"
    groups = param_groups(model, optimizer.weight_decay, optimizer.layer_decay, muon=muon)
    build = MuonWithAdamW if muon else build_adamw
    return TrainState(model, build(groups, betas=optimizer.betas, eps=optimizer.eps), average, device, world)


def start_from(
    weights: Path, model: ILlama | None = None, classes: Sequence[str] | None = None
) -> tuple[Start, LoadReport | None]:
    """Read the weights that a run starts from.

    Args:
        weights: As `illama.weights.load.locate`.
        model: Gets them; None only tells them apart.
        classes: The model's class names, for its head.

    Returns:
        Which weights they are, and what became of each tensor.

    Raises:
        UserError: They cannot be read, or do not fit.
    """
    place = locate(weights)
    state, meta = read_weights(place.file)
    published, run = place.published, run_of(place.file)
    stated = meta.source if meta is not None and meta.source else published.name if published is not None else None
    name = stated or (Path(weights) if run is None else run).name
    start = Start(str(weights), name, tensors_id(state))
    return start, None if model is None else adapt_weights(state, meta, weights, model, classes)
