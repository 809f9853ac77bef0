"""Evaluation from paths: which weights, on which data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from illama.errors import UserError
from illama.evaluation.classify import EvalResult, KeptLogits, evaluate_model
from illama.evaluation.data_identity import content_id, names_id, network_id
from illama.evaluation.subject import Subject, open_subject

if TYPE_CHECKING:
    from illama.data.loading.loader import EvalLoader


def evaluate(
    checkpoint: Path | str,
    *,
    data: str | None = None,
    split: str | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    softness: float | None = None,
    progress: bool = False,
    save_logits: Path | str | None = None,
) -> EvalResult:
    """Top-1, top-5, loss and per-class accuracy of a trained model; alone, or as one of the processes of `torchrun`.

    Args:
        checkpoint: Whatever `illama.load_model` takes.
        data: Another data set than the one trained on: a folder or file, or a name ("digits", "torch/cifar10").
        split: Which split; the recipe's evaluation split when None.
        batch_size: Images at a time; the recipe's when None.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.
        softness: Softness of the mask; the one saved with the weights when None.
        progress: Draw a progress bar on stderr.
        save_logits: A .safetensors file that the logits go to (`illama.evaluation.SavedLogits` reads it).

    Returns:
        The result. Images are read with the evaluation transform that travels with the weights, and classes keep
        the numbers that they had in training.

    Raises:
        UserError: Checkpoint, data or device cannot be used, or the logits cannot be written.
    """
    from illama.distributed import join_world  # imported here: the training loop evaluates too
    from illama.evaluation.saved_logits import check_target, class_mismatch, kept_logits

    target_file = None if save_logits is None else Path(save_logits)

    given = {"the command": "eval", "--save-logits": target_file is not None}
    with join_world(device, given) as (world, target), world.losing_nobody("run the same command again"):

        def prepare() -> tuple[Subject, EvalLoader]:
            if target_file is not None:
                check_target(target_file)
            subject = open_subject(
                checkpoint, data=data, split=split, batch_size=batch_size, device=target, softness=softness
            )
            problem = class_mismatch(subject)
            if problem is not None:
                raise UserError(problem)
            return subject, subject.loader(world)

        subject, loader = world.agree(prepare)
        if world.size > 1:
            world.demand_same(_judged(subject))
        classes = subject.meta.config.num_classes
        keep = None if target_file is None else KeptLogits()
        shown = progress and world.is_main
        result = evaluate_model(subject.model, loader, classes, progress=shown, world=world, keep=keep)
        if not math.isfinite(result.loss):
            raise world.error(f"{subject.weights} answers with NaN or infinity; these weights cannot be judged")
        if keep is not None and target_file is not None:
            saved = kept_logits(subject, keep, result.skipped, world)
            world.main_only(lambda: saved.save(target_file))
    description = subject.source.description
    return dataclasses.replace(result, classes=subject.meta.classes, data=description, weights=subject.weights)


def _judged(subject: Subject) -> dict[str, object]:
    """What all processes have to judge, wherever each has it."""
    network = network_id(subject.model, subject.transform)
    return {
        "the network": network[:12],
        "images": len(subject.source),
        "the images' names and labels": names_id(subject.source)[:12],
        "the images' content": content_id(subject.source)[:12],
        "images at a time": subject.batch_size,
    }
