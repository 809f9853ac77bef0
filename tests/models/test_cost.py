"""The formulas against the printed tables, and against the network itself."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illama.models import ILlama, ModelConfig
from illama.models.cost import (
    forward_bytes,
    multiply_adds,
    needed_multiply_adds,
    parameters,
    peer_config,
    training_bytes,
    training_multiply_adds,
    working_set_bytes,
)
from illama.models.variants import ROADMAP, VARIANTS, roadmap_config

TOY = ModelConfig(img_size=(32, 16), patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=7)
SIZES = ("tiny", "small", "base", "large")


@pytest.mark.parametrize(
    ("name", "px", "count", "giga"),
    [
        ("tiny", 224, 5_701_096, 1.254),
        ("small", 224, 22_018_024, 4.599),
        ("base", 224, 86_502_376, 17.564),
        ("large", 224, 310_445_032, 62.794),
        ("tiny", 384, 5_774_056, 4.682),
        ("small", 384, 22_163_944, 15.490),
        ("base", 384, 86_794_216, 55.484),
        ("large", 384, 310_834_152, 194.696),
    ],
)
def test_the_family_has_its_printed_size_and_cost(name: str, px: int, count: int, giga: float) -> None:
    config = dataclasses.replace(VARIANTS[name], img_size=px)
    assert parameters(config) == count
    assert round(multiply_adds(config) / 1e9, 3) == giga


@pytest.mark.parametrize(
    ("px", "mode", "ratios"),
    [
        (224, "post_softmax", (1.114, 1.095, 1.085, 1.023)),
        (224, "pre_softmax", (1.155, 1.117, 1.096, 1.031)),
        (384, "post_softmax", (1.173, 1.132, 1.106, 1.039)),
        (384, "pre_softmax", (1.286, 1.193, 1.138, 1.061)),
    ],
)
def test_what_is_needed_is_less_than_what_a_vit_computes(px: int, mode: str, ratios: tuple[float, ...]) -> None:
    for name, ratio in zip(SIZES, ratios, strict=True):
        config = dataclasses.replace(VARIANTS[name], img_size=px, mask_mode=mode)
        assert round(multiply_adds(peer_config(config)) / needed_multiply_adds(config), 3) == ratio


@pytest.mark.parametrize("row", list(ROADMAP))
@pytest.mark.parametrize("edits", [{}, {"qkv_bias": False, "layer_scale": 0.1}, {"num_classes": 0}])
def test_parameters_equal_the_networks(row: str, edits: dict[str, object]) -> None:
    config = dataclasses.replace(roadmap_config(row, "tiny"), **{"embed_dim": 32, "num_heads": 2, "depth": 2} | edits)
    with torch.device("meta"):
        model = ILlama(config)
    assert parameters(config) == sum(p.numel() for p in model.parameters())


def test_a_vits_multiply_adds_equal_counted_ones() -> None:
    config = peer_config(TOY)  # no mask, no saving of ours applies to the blocks but the last
    model = ILlama(dataclasses.replace(config, global_pool="avg"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.rand(1, 3, 32, 16))
    assert counter.get_total_flops() == 2 * multiply_adds(config)


def test_a_soft_mask_or_an_average_needs_more() -> None:
    causal = needed_multiply_adds(TOY)
    assert causal < needed_multiply_adds(TOY, softness=0.5) < multiply_adds(TOY)
    averaged = dataclasses.replace(TOY, global_pool="avg")
    assert causal < needed_multiply_adds(averaged) < needed_multiply_adds(averaged, softness=1.0)
    assert needed_multiply_adds(averaged, softness=1.0) == multiply_adds(averaged)


def by_counting(config: ModelConfig) -> int:
    """Needed multiply-adds by walking over queries and keys, one block at a time."""
    N, D, m = config.num_patches + 1, config.embed_dim, config.hidden_dim
    cls = N - 1 if config.cls_position == "last" else 0
    total = config.num_patches * 3 * config.patch_size**2 * D + D * config.num_classes
    for block in range(config.depth):
        queries = [cls] if block == config.depth - 1 else list(range(N))
        total += 2 * N * D * D  # keys and values
        for query in queries:
            whole = config.mask == "modified_causal" and query == 0
            visible = [key for key in range(N) if key <= query or whole]
            scored = visible if config.mask_mode == "pre_softmax" else range(N)
            total += 2 * D * D + (len(scored) + len(visible)) * D + 3 * D * m
    return total


@pytest.mark.parametrize("mode", ["post_softmax", "pre_softmax"])
@pytest.mark.parametrize(
    ("mask", "cls"),
    [("causal", "last"), ("causal", "first"), ("modified_causal", "first"), ("modified_causal", "last")],
)
def test_needed_equals_a_count_of_pairs(mode: str, mask: str, cls: str) -> None:
    config = dataclasses.replace(TOY, mask_mode=mode, mask=mask, cls_position=cls)
    assert needed_multiply_adds(config) == by_counting(config)


def test_a_training_step_counts_three_products_but_for_the_image() -> None:
    model = ILlama(dataclasses.replace(peer_config(TOY), global_pool="avg"))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.rand(2, 3, 32, 16)).sum().backward()
    assert counter.get_total_flops() == 2 * 2 * training_multiply_adds(TOY_VIT, multiply_adds(TOY_VIT))


TOY_VIT = peer_config(TOY)


def test_bytes_are_weights_plus_what_grows_with_the_batch() -> None:
    count = parameters(TOY)
    for bytes_of, weights in ((forward_bytes, 4 * count), (training_bytes, 40 * count), (working_set_bytes, 4 * count)):
        one, two, three = (bytes_of(TOY, batch, 4) for batch in (1, 2, 3))
        assert two - one == three - two > 0
        assert one - (two - one) == weights
    assert forward_bytes(TOY, 4, 2) * 2 == forward_bytes(TOY, 4, 4)
    tokens = TOY.num_patches + 1
    per_image = forward_bytes(TOY, 2, 1) - forward_bytes(TOY, 1, 1)
    assert per_image == 3 * 32 * 16 + 7 + tokens * (3 * (14 * 32 + 2 * TOY.hidden_dim) + 2 * 32)
