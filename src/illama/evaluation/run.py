"""Evaluation from paths: which weights, on which data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from illama.checkpoint import Meta, load_model
from illama.checkpoint.io import find_weights
from illama.errors import UserError
from illama.evaluation.classify import EvalResult, evaluate_model
from illama.recipes import DataConfig, Recipe, parse_recipe

if TYPE_CHECKING:
    import torch

    from illama.data.loader import EvalLoader
    from illama.distributed import World
    from illama.models import ILlama


def evaluate(
    checkpoint: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    softness: float | None = None,
    progress: bool = False,
) -> EvalResult:
    """Top-1, top-5, loss and per-class accuracy of a trained model; alone, or as one of the processes of `torchrun`.

    Args:
        checkpoint: A run folder, a checkpoint folder or a .safetensors file that illama wrote.
        data: Another data set than the one trained on: a folder or file, or a name ("digits", "torch/cifar10").
        split: Which split; the recipe's evaluation split when None.
        batch_size: Images at a time; the recipe's when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        softness: Softness of the mask; the one saved with the weights when None.
        progress: Draw a progress bar on stderr.

    Returns:
        The result. Images are read with the evaluation transform that travels with the weights, and classes keep
        the numbers that they had in training.

    Raises:
        UserError: Checkpoint, data or device cannot be used.
    """
    from illama.distributed import join_world  # imported here: the training loop evaluates too

    with join_world(device) as (world, target), world.losing_nobody("run the same command again"):
        wanted = batch_size, split, data
        model, meta, loader, about = world.agree(lambda: _prepare(checkpoint, *wanted, target, world))
        result = evaluate_model(
            model, loader, meta.config.num_classes, softness=softness, progress=progress and world.is_main, world=world
        )
    return dataclasses.replace(result, classes=meta.classes, data=about["data"], weights=about["weights"])


def _prepare(
    checkpoint: Path | str,
    batch_size: int | None,
    split: str | None,
    data: str | None,
    device: torch.device,
    world: World,
) -> tuple[ILlama, Meta, EvalLoader, dict[str, str]]:
    """The model, what travelled with it, this process's share of the images, and data and weights in words."""
    from illama.data import EvalTransform, build_eval_loader, open_source

    file = find_weights(Path(checkpoint))
    model, meta = load_model(file, device)
    recipe = None if meta.recipe is None else parse_recipe(meta.recipe, f"the recipe in {checkpoint}")
    config = choose_data(recipe, data)
    source = open_source(
        config,
        split or "eval",
        in_chans=meta.config.in_chans,
        classes=meta.classes or None,
        seed=0 if recipe is None else recipe.seed,
    )
    transform = EvalTransform.from_dict(needed_transform(meta, checkpoint))
    size = batch_size or (256 if recipe is None else recipe.train.eval_batch)
    loader = build_eval_loader(source, transform, size, device, config.workers, config.worker_timeout_s, world)
    weights = f"{file}, step {meta.step}" + (", averaged" if meta.ema else "")
    return model, meta, loader, {"data": source.description, "weights": weights}


def choose_data(recipe: Recipe | None, given: str | None) -> DataConfig:
    """The data section to evaluate on: the recipe's own, or one that looks elsewhere.

    Elsewhere the whole evaluation split counts: `val_fraction` and `max_eval_images` belong to the recipe's own data.

    Args:
        recipe: What the weights were trained with, where known.
        given: A path or a data set's name; None for the recipe's own data.

    Raises:
        UserError: Nothing is given and no recipe is known, or the path does not exist.
    """
    if given is None:
        if recipe is None:
            raise UserError("these weights do not say which data they were trained on; give it with --data")
        return recipe.data
    base = DataConfig() if recipe is None else recipe.data
    whole = {"val_fraction": 0.0, "max_eval_images": None}
    if Path(given).expanduser().exists():
        if base.path is not None and Path(base.path).expanduser().resolve() == Path(given).expanduser().resolve():
            return base
        name = "auto" if base.name == "digits" else base.name
        return base.model_copy(update={"name": name, "path": given} | whole)
    if given == "digits" or given.partition("/")[0] in ("torch", "hfds", "wds"):
        path = None if given == "digits" else base.path
        return base.model_copy(update={"name": given, "path": path} | whole)
    raise UserError(
        f"data {given!r} does not exist and is no data set's name; give a folder, a parquet file, or a name such as "
        "digits, torch/cifar10, hfds/..., wds/..."
    )


def needed_transform(meta: Meta, checkpoint: Path | str) -> dict[str, object]:
    """The evaluation transform that travels with the weights."""
    if meta.eval_transform is None:
        raise UserError(f"{checkpoint} does not say how its images are to be resized and normalised")
    return meta.eval_transform
