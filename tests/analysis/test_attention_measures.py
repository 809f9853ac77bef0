"""Numbers of attention maps, worked by hand and of whole networks; what the class token looks at and hears."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from illama.analysis import class_attention, class_token_leak
from illama.analysis.attention.measures import (
    attention_distance,
    cumulated_shares,
    effective_rank,
    indifferent_weights,
    on_grid,
    patch_distances,
    patches_of,
    rank_of,
    readout_row,
    residual_mix,
    rollout,
    row_entropy,
    row_mass,
    singular_values,
)
from illama.errors import UserError
from illama.models import ModelConfig
from tests.analysis.common import KINDS, TOY, every_kind, network, some_images

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


@pytest.mark.parametrize("mask_mode", ["post_softmax", "pre_softmax"])
@pytest.mark.parametrize("cls_position", ["first", "last"])
def test_row_written_out_at_depth_one(cls_position: str, mask_mode: str) -> None:
    model = network(depth=1, num_heads=1, cls_position=cls_position, mask_mode=mask_mode, position="learned")
    images = some_images(1)
    with torch.no_grad():
        patches = [
            torch.einsum("dcyx,cyx->d", model.patch_embed.proj.weight, images[0, :, y : y + 2, x : x + 2])
            + model.patch_embed.proj.bias
            for y in (0, 2, 4)
            for x in (0, 2)
        ]
        own = [model.cls_token[0, 0]]
        tokens = torch.stack(patches + own if cls_position == "last" else own + patches) + model.pos_embed[0]
        block = model.blocks[0]
        normed = tokens / (tokens.square().mean(1, keepdim=True) + 1e-6).sqrt() * block.norm1.weight
        q, k, _ = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(16, dim=1)
        at = 6 if cls_position == "last" else 0
        powers = [math.exp(float(q[at] @ k[j]) / 4) for j in range(7)]
    if cls_position == "last":
        expected = [power / sum(powers) for power in powers]
    else:
        expected = [powers[0] / sum(powers) if mask_mode == "post_softmax" else 1.0] + [0.0] * 6
    row_LhN = class_attention(model, images)
    assert row_LhN.shape == (1, 1, 7)
    torch.testing.assert_close(row_LhN[0, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("softness", [0.0, 0.4])
@every_kind
def test_equals_the_rows_of_get_attention(kind: str, softness: float) -> None:
    model, images = network(softness, **KINDS[kind]), some_images()
    with torch.no_grad():
        maps = [model.get_attention(images, block).mean(0)[:, model.cls_index] for block in range(model.config.depth)]
    torch.testing.assert_close(class_attention(model, images), torch.stack(maps), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("one_by_one")
@every_kind
def test_the_size_of_the_batches_changes_nothing(kind: str) -> None:
    model, images = network(**KINDS[kind]), some_images()
    rows = torch.stack([class_attention(model, image) for image in images.split(1)]).mean(0)
    torch.testing.assert_close(class_attention(model, images), rows, rtol=1e-12, atol=0)


def test_mass_of_the_row() -> None:
    """Complete wherever the mask lets the class token see everything, and cut down where it stands first."""
    images = some_images()
    for kind in ("published", "pre_softmax", "class first, pre_softmax", "modified mask", "peer"):
        mass_Lh = class_attention(network(**KINDS[kind]), images).sum(-1)
        torch.testing.assert_close(mass_Lh, torch.ones_like(mass_Lh), rtol=1e-12, atol=0)
    row_LhN = class_attention(network(**KINDS["class first"]), images)
    assert torch.count_nonzero(row_LhN[..., 1:]) == 0
    assert torch.all((row_LhN[..., 0] > 0) & (row_LhN[..., 0] < 1))


def test_leak_written_out() -> None:
    model, images = network().eval(), some_images(3)
    with torch.no_grad():
        logits = [model(image.unsqueeze(0))[0] for image in images]
    changes = [float((logits[i - 1] - logits[i]).norm() / logits[i].norm()) for i in range(3)]
    assert class_token_leak(model, images) == pytest.approx(sum(changes) / 3, rel=1e-12)


@pytest.mark.usefixtures("one_by_one")
def test_leak_of_batches() -> None:
    test_leak_written_out()


@every_kind
def test_only_a_strictly_causal_class_token_that_stands_first_is_blind(kind: str) -> None:
    leak = class_token_leak(network(**KINDS[kind]), some_images())
    assert leak == 0 if kind == "class first, pre_softmax" else leak > 1e-6


def test_blind_in_single_precision_too() -> None:
    model = network(**KINDS["class first, pre_softmax"]).float()
    assert class_token_leak(model, some_images(40).float()) == 0
