"""Rollout where rows sum to one and where they do not, and what the head reads."""

from __future__ import annotations

import pytest
import torch

from illama.analysis.attention.measures import on_grid, patches_of, readout_row, residual_mix, rollout
from illama.models import ModelConfig
from tests.analysis.common import KINDS, TOY, every_kind, network, some_images


def test_equals_abnar_and_zuidema_where_rows_sum_to_one() -> None:
    layers = [torch.rand(2, 3, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(3)]
    expected, found = torch.eye(5, dtype=torch.float64).expand(2, 5, 5), None
    for weights in layers:
        expected = (0.5 * weights.mean(1) + 0.5 * torch.eye(5)) @ expected
        found = rollout(weights, found)
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_lost_mass_by_hand() -> None:
    """The first row has kept half of its weight, on itself: the token stays what it was."""
    weights = torch.tensor([[[[0.5, 0.0], [0.25, 0.75]]]])
    once = rollout(weights)
    assert once[0].tolist() == [[1.0, 0.0], [0.125, 0.875]]
    assert rollout(weights, once)[0].tolist() == [[1.0, 0.0], [0.125 + 0.875 * 0.125, 0.875**2]]


def test_the_residual_counts_more_where_mass_is_lost() -> None:
    """A row that keeps the mass m on another token takes m / (1 + m) of it."""
    for mass in (1.0, 0.5, 0.04, 0.0):
        weights = torch.tensor([[[[1.0, 0.0], [mass, 0.0]]]], dtype=torch.float64)
        assert residual_mix(weights)[0, 1].tolist() == pytest.approx([mass / (1 + mass), 1 / (1 + mass)])


def test_the_order_of_layers() -> None:
    """First token 1 copies from 0, then 2 from 1: token 2 hears of 0. The other way round it does not."""
    copies_0 = torch.tensor([[[[1.0, 0, 0], [1, 0, 0], [0, 0, 1]]]])
    copies_1 = torch.tensor([[[[1.0, 0, 0], [0, 1, 0], [0, 1, 0]]]])
    assert rollout(copies_1, rollout(copies_0))[0, 2].tolist() == [0.25, 0.25, 0.5]
    assert rollout(copies_0, rollout(copies_1))[0, 2].tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("softness", [0.0, 0.4])
@every_kind
def test_rows_sum_to_one_in_every_network(kind: str, softness: float) -> None:
    model, images, found = network(softness, **KINDS[kind]).eval(), some_images(), None
    with torch.no_grad():
        for layer in range(model.config.depth):
            found = rollout(model.get_attention(images, layer), found)
    assert found is not None
    torch.testing.assert_close(found.sum(-1), torch.ones(5, 7, dtype=torch.float64), rtol=1e-12, atol=0)
    row = readout_row(found, model.config)
    assert row.shape == (5, 7)
    if kind.startswith("class first") and softness == 0:  # its row of the mask holds itself alone
        assert torch.equal(row, torch.eye(7, dtype=torch.float64)[0].expand(5, 7))
    else:
        assert torch.all(row[:, patches_of(model.config)] > 0)


def test_what_the_head_reads() -> None:
    maps = torch.arange(49.0).view(1, 7, 7)
    assert torch.equal(readout_row(maps, ModelConfig(**TOY)), maps[:, 6])
    assert torch.equal(readout_row(maps, ModelConfig(**TOY, cls_position="first")), maps[:, 0])
    assert torch.equal(readout_row(maps, ModelConfig(**TOY, global_pool="avg")), maps[:, :6].mean(1))
    first = ModelConfig(**TOY, global_pool="avg", cls_position="first")
    assert torch.equal(readout_row(maps, first), maps[:, 1:].mean(1))
    assert torch.equal(readout_row(maps, ModelConfig(**TOY, global_pool="")), maps.mean(1))


def test_patches_on_their_grid() -> None:
    row = torch.arange(7.0).view(1, 7)
    assert on_grid(row, ModelConfig(**TOY))[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert on_grid(row, ModelConfig(**TOY, cls_position="first"))[0].tolist() == [[1, 2], [3, 4], [5, 6]]
