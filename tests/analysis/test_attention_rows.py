"""Distance, entropy and mass of rows, by hand on a grid of 2 x 2 patches of 16 px."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from illama.analysis.attention.measures import (
    attention_distance,
    indifferent_weights,
    patch_distances,
    row_entropy,
    row_mass,
)
from illama.models import ModelConfig
from tests.analysis.common import KINDS, every_kind, network

GRID: dict[str, Any] = {"img_size": 32, "patch_size": 16, "embed_dim": 16, "num_heads": 2}
LAST, FIRST = ModelConfig(**GRID), ModelConfig(**GRID, cls_position="first")
DIAGONAL = 16 * 2**0.5


def of_patches(weights: torch.Tensor, config: ModelConfig, on_class: float = 0.0) -> torch.Tensor:
    """A map whose patches look at patches as given and at the class token, which looks at itself."""
    whole = torch.zeros(5, 5)
    patches = slice(0, 4) if config is LAST else slice(1, 5)
    token = 4 if config is LAST else 0
    whole[patches, patches], whole[patches, token], whole[token, token] = weights, on_class, 1.0
    return whole


def test_distances_of_a_square() -> None:
    row = patch_distances(LAST)[0].tolist()
    assert row == pytest.approx([0, 16, 16, DIAGONAL])


def test_distances_of_a_grid_that_is_not_square() -> None:
    distances = patch_distances(ModelConfig(img_size=(48, 32), patch_size=16))  # 3 rows, 2 columns
    assert distances[0].tolist() == pytest.approx([0, 16, 16, DIAGONAL, 32, 16 * 5**0.5])
    assert torch.equal(distances, distances.T)


@pytest.mark.parametrize("config", [LAST, FIRST], ids=["class last", "class first"])
def test_distance_by_hand(config: ModelConfig) -> None:
    even = torch.full((4, 4), 0.25)
    assert float(attention_distance(of_patches(even, config), config)) == pytest.approx((32 + DIAGONAL) / 4)
    assert float(attention_distance(of_patches(torch.eye(4), config), config)) == 0
    opposite = torch.eye(4).flip(0)
    assert float(attention_distance(of_patches(opposite, config), config)) == pytest.approx(DIAGONAL)
    # What goes to the class token, and what the mask took, do not count: rows are normalised over patches.
    assert float(attention_distance(of_patches(0.1 * opposite, config, 0.6), config)) == pytest.approx(DIAGONAL)


def test_causal_distance_by_hand() -> None:
    """Patch 0 sees itself; 1 sees 0 at 16 px; 2 sees 0 and 1; 3 sees all."""
    weights = torch.ones(4, 4).tril()
    expected = (0 + 16 / 2 + (16 + DIAGONAL) / 3 + (32 + DIAGONAL) / 4) / 4
    assert float(attention_distance(of_patches(weights, LAST), LAST)) == pytest.approx(expected)


def test_rows_without_weight_are_left_out() -> None:
    opposite = torch.eye(4).flip(0)
    opposite[1:] = 0
    maps = torch.stack((of_patches(opposite, LAST, 0.5), of_patches(torch.zeros(4, 4), LAST, 0.5)))
    with_some, with_none = attention_distance(maps, LAST).tolist()
    assert with_some == pytest.approx(DIAGONAL)
    assert math.isnan(with_none)
    assert row_entropy(torch.tensor([[0.5, 0.5], [0.0, 0.0]])).item() == pytest.approx(math.log(2))


def test_entropy_by_hand() -> None:
    assert row_entropy(torch.full((8, 8), 1 / 8)).item() == pytest.approx(math.log(8))
    assert row_entropy(torch.eye(8)).item() == 0
    causal = torch.ones(3, 3).tril() / torch.tensor([[7.0], [0.5], [3.0]])  # the mass of a row does not matter
    assert row_entropy(causal).item() == pytest.approx((math.log(2) + math.log(3)) / 3)


def test_leading_axes_stay() -> None:
    maps = torch.rand(3, 2, 5, 5)
    for found in (attention_distance(maps, LAST), row_entropy(maps), row_mass(maps)):
        assert found.shape == (3, 2)


def test_mass_by_hand() -> None:
    assert row_mass(torch.tensor([[0.25, 0.0], [0.5, 0.5]])).item() == pytest.approx(0.625)


@pytest.mark.parametrize("softness", [0.0, 0.4, 1.0])
@every_kind
def test_equal_scores(kind: str, softness: float) -> None:
    """Every entry of every mask, from the equations of the two modes."""
    model = network(softness, **KINDS[kind])
    config, alpha = model.config, float(model.softness)
    expected = torch.zeros(7, 7, dtype=torch.float64)
    for i in range(7):
        sees = [config.mask == "none" or j <= i or (config.mask == "modified_causal" and i == 0) for j in range(7)]
        factors = [1.0 if seen else alpha for seen in sees]
        total = 7.0 if config.mask_mode == "post_softmax" else sum(factors)
        expected[i] = torch.tensor([factor / total for factor in factors], dtype=torch.float64)
    torch.testing.assert_close(indifferent_weights(model), expected, rtol=1e-12, atol=0)
