"""Ranks of attention maps: by hand, in closed form, and against numpy's singular values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from illama.analysis.attention.measures import cumulated_shares, effective_rank, rank_of, singular_values
from illama.errors import UserError


def ranks(weights: torch.Tensor, share: float = 0.8) -> tuple[int, float]:
    values = singular_values(weights)
    return int(rank_of(cumulated_shares(values), share)), float(effective_rank(values))


@pytest.mark.parametrize(("tokens", "needed"), [(1, 1), (5, 4), (10, 8), (17, 14)])
def test_identity_needs_its_share_of_all(tokens: int, needed: int) -> None:
    rank, effective = ranks(torch.eye(tokens))
    assert rank == needed
    assert effective == pytest.approx(tokens)


def test_one_direction() -> None:
    same_row = torch.rand(1, 9).softmax(-1).expand(9, 9)
    rank, effective = ranks(same_row)
    assert rank == 1
    assert effective == pytest.approx(1, abs=1e-6)  # float32 weights


def test_a_map_of_zeros() -> None:
    values = singular_values(torch.zeros(3, 4, 4))
    assert torch.equal(cumulated_shares(values), torch.ones(3, 4, dtype=torch.float64))
    assert torch.equal(effective_rank(values), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("tokens", [2, 7, 40])
def test_lower_triangle_of_ones(tokens: int) -> None:
    """Its singular values are 1 / (2 sin((2k - 1) pi / (4N + 2))), k = 1 ... N."""
    expected = [1 / (2 * math.sin((2 * k - 1) * math.pi / (4 * tokens + 2))) for k in range(1, tokens + 1)]
    values = singular_values(torch.ones(tokens, tokens).tril())
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    total, summed, rank = sum(expected), 0.0, 0
    while summed < 0.8 * total:
        summed += expected[rank]
        rank += 1
    assert ranks(torch.ones(tokens, tokens).tril())[0] == rank


def test_two_tokens_by_hand() -> None:
    """[[1, 0], [1, 1]]: the golden ratio and its inverse; their shares are 0.7236 and 0.2764."""
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    shares = cumulated_shares(singular_values(weights))
    assert shares.tolist() == pytest.approx([(1 + 5**0.5) / 2 / 5**0.5, 1.0])
    assert int(rank_of(shares, 0.72)) == 1
    assert int(rank_of(shares, 0.73)) == 2
    first = shares[0].item()
    entropy = -first * math.log(first) - (1 - first) * math.log(1 - first)
    assert float(effective_rank(singular_values(weights))) == pytest.approx(math.exp(entropy))


def test_the_rank_of_a_mean_curve_is_not_the_mean_of_ranks() -> None:
    curves = cumulated_shares(singular_values(torch.stack((torch.eye(10), torch.ones(10, 10) / 10))))
    assert rank_of(curves).tolist() == [8, 1]
    assert int(rank_of(curves.mean(0))) == 6  # (k / 10 + 1) / 2 reaches 0.8 at k = 6


@pytest.mark.parametrize("masked", [False, True])
def test_against_numpy(masked: bool) -> None:
    weights = torch.randn(4, 3, 60, 60).mul(3).softmax(-1)
    weights = weights.tril() if masked else weights
    expected = np.linalg.svd(weights.numpy().astype(np.float64), compute_uv=False)
    shares = np.cumsum(expected, -1) / expected.sum(-1, keepdims=True)
    values = singular_values(weights)
    curves = cumulated_shares(values)
    np.testing.assert_allclose(values.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(curves.numpy(), shares, atol=1e-12)
    for share in (0.5, 0.8, 0.99):
        found = rank_of(curves, share).numpy()
        assert np.array_equal(found, np.argmax(shares >= share, -1) + 1)
    parts = expected / expected.sum(-1, keepdims=True)
    entropy = -(parts * np.log(parts)).sum(-1)
    np.testing.assert_allclose(effective_rank(values).numpy(), np.exp(entropy), rtol=1e-12)


def test_all_is_reached_by_the_last_at_the_latest() -> None:
    """The last share is exactly 1, whatever the rounding of the sum."""
    curves = cumulated_shares(singular_values(torch.rand(200, 11, 11)))
    assert torch.all(curves[:, -1] == 1)
    assert int(rank_of(curves, 1.0).max()) <= 11


@pytest.mark.parametrize("share", [0.0, -0.1, 1.01, math.nan])
def test_a_share_that_is_none(share: float) -> None:
    with pytest.raises(UserError, match="must lie above 0 and be at most 1"):
        rank_of(torch.ones(3), share)
