"""The target's type decides the loss; values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from illama.errors import UserError
from illama.recipes import AugmentConfig
from illama.training.objective import build_loss, training_loss

# softmax = (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4)
LOGITS = torch.log(torch.tensor([[2.0, 1.0, 1.0], [1.0, 2.0, 1.0]]))


def test_classes() -> None:
    loss = training_loss(LOGITS, torch.tensor([0, 2]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_classes_with_smoothing() -> None:
    # target of the first image: 0.8 on class 0, 0.1 on the others (smoothing 0.3 over 3 classes)
    expected = [
        0.8 * math.log(2) + 0.2 * math.log(4),
        0.8 * math.log(4) + 0.1 * math.log(2) + 0.1 * math.log(4),
    ]
    assert training_loss(LOGITS, torch.tensor([0, 2]), 0.3).item() == pytest.approx(sum(expected) / 2)


def test_soft_targets() -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0]])
    expected = [0.7 * math.log(2) + 0.3 * math.log(4), math.log(4)]
    loss = build_loss("auto", AugmentConfig(mixup=0.2, label_smoothing=0.3))(LOGITS, targets)
    assert loss.item() == pytest.approx(sum(expected) / 2)  # smoothing is in the targets already


def test_smoothed_classes_equal_soft_targets() -> None:
    from illama.data.augment.mixing import smooth_one_hot

    logits, labels = torch.randn(7, 5), torch.arange(7) % 5
    hard = build_loss("auto", AugmentConfig(label_smoothing=0.1))(logits, labels)
    torch.testing.assert_close(hard, training_loss(logits, smooth_one_hot(labels, 5, 0.1)))


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(4, 1000, dtype=torch.bfloat16)
    assert training_loss(logits, torch.arange(4)).dtype == torch.float32


@pytest.mark.parametrize(("kind", "mixup"), [("cross_entropy", 0.5), ("soft_target", 0.0)])
def test_impossible_pairs_are_refused(kind: str, mixup: float) -> None:
    with pytest.raises(UserError, match=f"train.loss={kind} does not fit"):
        build_loss(kind, AugmentConfig(mixup=mixup))


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.zeros(2, 4)])
def test_other_targets_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="allowed: classes"):
        training_loss(LOGITS, targets)
