"""Whether a recipe fits its data: all that does not in one message, with what to type."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from illama.console.text import shown
from illama.data import Layout, Source, look
from illama.data.layout import one_class
from illama.data.sources.splits import roles_of
from illama.errors import UserError
from illama.recipes import Recipe, override, plan_batches
from illama.system.environment import command_line, typed_command
from illama.tasks.task import TaskData

FEW_STEPS = 100  # a run of fewer is said to be short
_STEPS_PER_EPOCH = 8  # that a proposed batch leaves at least
_SMALL = 200  # images of which a fifth is held out instead of a tenth


def fit_to_data(recipe: Recipe, num_devices: int = 1) -> TaskData:
    """Open the data of a recipe.

    Args:
        recipe: What is to be trained.
        num_devices: Devices that share a step.

    Raises:
        UserError: The data cannot be opened, or the recipe does not fit it; the message names all that does not, and
            the whole command that does.
    """
    layout = look(recipe.data)
    problems: list[str] = []
    changes: dict[str, Any] = {}
    if _nothing_to_evaluate_on(layout, recipe):
        changes["data.val_fraction"] = 0.1
        if len(_open(recipe, layout, "train", {"val_fraction": 0.1})) < _SMALL:
            changes["data.val_fraction"] = 0.2
        has = f"no split to evaluate on, only {', '.join(map(shown, layout.splits))}" if layout.splits else "no splits"
        problems.append(f"{layout.where} has {has}, so nothing is left to evaluate on (or {layout.how_to_split})")
    carved = {key.partition(".")[2]: value for key, value in changes.items()}
    train = _open(recipe, layout, "train", carved)
    classes = len(train.classes)
    if classes < 2:
        raise UserError(one_class(train.classes, layout))
    if not recipe.classes_from_data and classes != recipe.model.num_classes:
        changes["model.num_classes"] = classes
        problems.append(f"the data has {classes} classes, model.num_classes is {recipe.model.num_classes}")
    total = recipe.train.total_batch
    if len(train) < total:
        changes |= _smaller_batch(recipe, len(train), num_devices)
        problems.append(f"its {len(train)} training images are fewer than the {total} of one step")
    evaluated = _open(recipe, layout, "eval", carved, train.classes)  # first what no command can mend
    if problems:
        raise UserError(_message(recipe, problems, changes))
    resolved = recipe.with_classes(classes)
    plan_batches(resolved, num_devices)
    return TaskData(resolved, train, evaluated, layout.explain(train.classes))


def short_run(steps_per_epoch: int, epochs: int) -> str | None:
    """What to say of a run of few steps; None of others."""
    steps = steps_per_epoch * epochs
    if steps >= FEW_STEPS:
        return None
    return (
        f"ATTENTION: only {steps} steps in {epochs} epochs ({steps_per_epoch} in each), few for a network that begins "
        "anew; more schedule.epochs make more, in another folder (--out)"
    )


def _nothing_to_evaluate_on(layout: Layout, recipe: Recipe) -> bool:
    data = recipe.data
    if data.val_fraction > 0 or data.eval_split != "auto":
        return False
    return not {"validation", "test"} & set(roles_of(layout.splits).values())


def _open(
    recipe: Recipe, layout: Layout, split: str, changes: dict[str, Any], classes: Sequence[str] | None = None
) -> Source:
    """A split as it would be with other values in the data section; the layout does not depend on those."""
    data = recipe.data.model_copy(update=changes)
    return layout.asked_for(data).open(split, in_chans=recipe.model.in_chans, classes=classes, seed=recipe.seed)


def _smaller_batch(recipe: Recipe, images: int, num_devices: int) -> dict[str, Any]:
    """A total batch that leaves some steps in an epoch, and what has to change with it."""
    total = num_devices
    while 2 * total * _STEPS_PER_EPOCH <= images:
        total *= 2
    how, optimizer = recipe.train, recipe.optimizer
    changes: dict[str, Any] = {"train.total_batch": total}
    changes |= {f"train.{key}": None for key in ("device_batch", "accumulation") if getattr(how, key) is not None}
    lr = optimizer.lr * total / optimizer.lr_batch if optimizer.lr_scaling == "linear" else optimizer.lr
    if total != optimizer.lr_batch and optimizer.lr_scaling is None:  # Adam's rule: Malladi et al., arXiv 2205.10287
        lr = float(f"{optimizer.lr * math.sqrt(total / optimizer.lr_batch):.2g}")
        changes |= {"optimizer.lr": lr, "optimizer.lr_scaling": "none"}
    if lr < optimizer.min_lr:
        changes["optimizer.min_lr"] = 0.0
    return changes


def _message(recipe: Recipe, problems: Sequence[str], changes: dict[str, Any]) -> str:
    words = [override(key, value) for key, value in changes.items()]
    command = typed_command(command_line(), words)
    what = f"this fits: {command}" if command else f"add {' '.join(words)}"
    return f"{recipe.name} does not fit the data: {'; '.join(problems)}; {what}"
