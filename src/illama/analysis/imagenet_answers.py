"""What an ImageNet-1K network answers to a set of images, for the analyses that need its 1000 classes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from illama.data.eval_transform import EvalTransform
from illama.data.imagenet import is_imagenet_head
from illama.data.source import Source
from illama.errors import UserError
from illama.evaluation import collect_logits
from illama.evaluation.subject import Subject


class ImagenetAnswers(NamedTuple):
    """The logits of one pass.

    Attributes:
        logits: (N, 1000) float32.
        labels: The images' labels in their source, (N,) int64.
        positions: Their positions there, (N,) int64.
        skipped: Images that cannot be read; they are in none of the above.
    """

    logits: Tensor
    labels: Tensor
    positions: Tensor
    skipped: int


def not_imagenet(subject: Subject) -> str | None:
    """Why these classes are not ImageNet-1K's, in one line; None if they are."""
    classes, count = subject.meta.classes, subject.meta.config.num_classes
    if is_imagenet_head(count, classes):
        return None
    named = f" ({', '.join(classes[:3])}, ...)" if classes else ""
    return f"the network tells {count} classes{named} apart; this needs ImageNet-1K's 1000 in their usual order"


def answers(subject: Subject, source: Source, transform: EvalTransform | None = None) -> ImagenetAnswers:
    """Show all images of a source to the network of `subject`.

    Args:
        subject: The network.
        source: The images.
        transform: How to look at them; the subject's own way when None.

    Raises:
        UserError: No image can be read, or a logit is not finite.
    """
    seen = dataclasses.replace(subject.on(source), transform=transform or subject.transform)
    loader = seen.loader()
    logits, labels, positions = collect_logits(seen.model, loader, progress=True)
    bad = int((~torch.isfinite(logits).all(dim=1)).sum())
    if bad:
        raise UserError(
            f"{source.description}: the logits of {bad} of {len(logits)} images are not finite; "
            "its weights are damaged or its training diverged"
        )
    return ImagenetAnswers(logits, labels, positions, len(loader.skipped))
