"""Evaluation from paths: which weights, on which data."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from illama.evaluation.classify import EvalResult, evaluate_model
from illama.evaluation.subject import Subject, open_subject

if TYPE_CHECKING:
    from illama.data.loader import EvalLoader


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

        def prepare() -> tuple[Subject, EvalLoader]:
            subject = open_subject(
                checkpoint, data=data, split=split, batch_size=batch_size, device=target, softness=softness
            )
            return subject, subject.loader(world)

        subject, loader = world.agree(prepare)
        classes = subject.meta.config.num_classes
        result = evaluate_model(subject.model, loader, classes, progress=progress and world.is_main, world=world)
    description = subject.source.description
    return dataclasses.replace(result, classes=subject.meta.classes, data=description, weights=subject.weights)
