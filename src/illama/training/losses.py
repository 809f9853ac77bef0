"""The training loss; the type of the targets decides which."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import AugmentConfig

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def build_loss(kind: str, augment: AugmentConfig) -> Loss:
    """The loss of a recipe, a function of (logits, targets).

    Args:
        kind: `train.loss`: "auto", "cross_entropy" (for classes) or "soft_target" (for mixup and cutmix).
        augment: Decides which targets come, and the label smoothing.

    Raises:
        UserError: The named loss does not fit the targets that the augmentation makes.
    """
    fitting = "soft_target" if augment.mixup > 0 or augment.cutmix > 0 else "cross_entropy"
    if kind not in ("auto", fitting):
        targets = "soft targets" if fitting == "soft_target" else "whole classes"
        raise UserError(f"train.loss={kind} does not fit {targets}; give train.loss={fitting} or auto")
    smoothing = augment.label_smoothing
    return lambda logits, targets: training_loss(logits, targets, smoothing)


def training_loss(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of a batch, computed in float32.

    Args:
        logits: (B, K), any float type.
        targets: Classes (B,) int64, or soft targets (B, K) float (from mixup and cutmix).
        label_smoothing: Share of the target spread over all K classes. For classes only: soft targets carry
            theirs already.

    Returns:
        0-d float32.

    Raises:
        ValueError: Shape or type of the targets fits neither kind.
    """
    if targets.dtype == torch.int64 and targets.shape == logits.shape[:1]:
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    if targets.is_floating_point() and targets.shape == logits.shape:
        return -(targets * F.log_softmax(logits.float(), -1)).sum(-1).mean()
    raise ValueError(
        f"targets are {targets.dtype} {tuple(targets.shape)} for logits {tuple(logits.shape)}; "
        "allowed: classes (B,) int64, or soft targets (B, K) float"
    )
