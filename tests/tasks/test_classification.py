"""The target's type decides the loss, values by hand; a picture that shows wrong answers without colour."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from illama.errors import UserError
from illama.recipes import AugmentConfig
from illama.tasks.classification import build_loss, draw_predictions, training_loss

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
    from illama.data.augment.batched import smooth_one_hot

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


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 32, 32), (9, 3, 96, 160), (33, 1, 8, 8)])
def test_wrong_answers_are_told_apart_without_colour(
    tmp_path: Path, drawing: None, drawn: list[Figure], shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    truths = [i % 3 for i in range(len(images))]
    answers = [0] * len(images)
    classes = ["a class with a very long name", "$x_1$", "字"]
    path = draw_predictions(images, truths, answers, [0.5] * len(images), classes, tmp_path / "predictions.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    *titles, over_all = (text.get_text() for text in drawn[0].axes[0].texts)
    assert len(titles) == len(images)
    assert over_all.startswith(f"{len(images)} test images, ")
    for title, truth in zip(titles, truths, strict=True):
        right = truth == 0
        assert title.startswith("\N{CHECK MARK}" if right else "\N{BALLOT X}")
        assert "(50 %)" in title
        assert ("\nis " in title) == (not right)
