"""Accuracy and loss against independent computations."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from illama.evaluation import Scores


def random_case(seed: int, n: int, classes: int, levels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Few levels make ties frequent."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, levels, (n, classes), generator=generator).float()
    return logits, torch.randint(0, classes, (n,), generator=generator)


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12), st.integers(1, 50))
def test_ranks_equal_a_stable_sort(seed: int, n: int, classes: int, levels: int) -> None:
    logits, targets = random_case(seed, n, classes, levels)
    scores = Scores.of(logits, targets)
    for row, target, rank in zip(logits.tolist(), targets.tolist(), scores.ranks.tolist(), strict=True):
        order = sorted(range(classes), key=lambda i: (-row[i], i))
        assert rank == order.index(target)
    for k in (1, 5):
        expected = sum(rank < k for rank in scores.ranks.tolist()) / n * 100
        assert scores.top(k) == pytest.approx(expected, abs=1e-9)


def test_loss_equals_the_definition() -> None:
    logits, targets = random_case(0, 40, 7, 1000)
    logits = logits / 100
    by_hand = [
        math.log(sum(math.exp(v) for v in row)) - row[target]
        for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True)
    ]
    assert Scores.of(logits, targets).mean_loss() == pytest.approx(sum(by_hand) / 40, rel=1e-6)


def test_a_model_that_says_nothing_is_at_chance() -> None:
    scores = Scores.of(torch.zeros(100, 10), torch.arange(100) % 10)
    assert scores.top(1) == 10.0
    assert scores.top(5) == 50.0
    assert scores.mean_loss() == pytest.approx(math.log(10))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_broken_model_is_never_right(bad: float) -> None:
    logits = torch.full((4, 3), bad)
    assert Scores.of(logits, torch.tensor([0, 1, 2, 0])).top(1) == 0.0
    logits = torch.tensor([[bad, 5.0, 0.0]])
    assert Scores.of(logits, torch.tensor([1])).top(2) == 0.0


def test_per_class_counts() -> None:
    targets = torch.tensor([0, 0, 2, 2, 2])
    logits = torch.nn.functional.one_hot(torch.tensor([0, 1, 2, 2, 1]), 4).float()
    hits, counts = Scores.of(logits, targets).per_class(4)
    assert hits == [1, 0, 2, 0]
    assert counts == [2, 0, 3, 0]


def test_batches_join_to_the_whole() -> None:
    logits, targets = random_case(3, 50, 9, 30)
    whole = Scores.of(logits, targets)
    places = torch.arange(50)
    batches = [slice(at, at + 7) for at in (14, 0, 42, 7, 21, 35, 28, 49)]  # several processes bring them in any order
    parts = Scores.join([Scores.of(logits[rows], targets[rows], places[rows]) for rows in batches])
    assert torch.equal(parts.indices, places)
    assert torch.equal(parts.ranks, whole.ranks)
    assert torch.equal(parts.targets, whole.targets)
    assert torch.allclose(parts.losses, whole.losses, rtol=1e-6)


def test_half_precision_logits_are_judged_in_single() -> None:
    logits, targets = random_case(4, 50, 9, 30)
    assert Scores.of(logits.bfloat16(), targets).mean_loss() == Scores.of(logits, targets).mean_loss()
