"""The last block computes the class token alone: nothing changes but the arithmetic."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from illama import ILlama, ModelConfig
from illama.models import VARIANTS
from illama.models.cost import multiply_adds, needed_multiply_adds

SMALL = ModelConfig(img_size=(16, 24), patch_size=8, num_classes=5, embed_dim=32, depth=3, num_heads=2)
FIRST = {"cls_position": "first"}
VIT = {"cls_position": "first", "mask": "none", "ffn": "mlp", "norm": "layer", "position": "learned"}
TWO = {"cls_position": "first", "mask": "none", "position": "rope2d", "embed_dim": 32}


def model_of(**edits: Any) -> ILlama:
    """In double, with parameters that are all away from their initial zeros and ones."""
    model = ILlama(dataclasses.replace(SMALL, **edits)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 16, 24, dtype=torch.float64)


def outcome(model: ILlama, batch: torch.Tensor, only_needed: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """Logits, the image's gradient and every parameter's, under the same random numbers."""
    model.only_needed_tokens = only_needed
    model.zero_grad()
    batch = batch.detach().requires_grad_()
    torch.manual_seed(seed)
    logits = model(batch)
    (logits * torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    return {"logits": logits.detach(), "images": batch.grad, **gradients}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= tolerance * value.norm(), name
    assert expected["logits"].norm() > 0


@pytest.mark.parametrize("softness", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"mask_mode": "pre_softmax"},
        {"qkv_bias": False},
        {"layer_scale": 0.1},
        {"attention_backend": "reference"},
        {"attention_backend": "blocked"},
        {"mask_mode": "pre_softmax", "attention_backend": "sdpa"},
        FIRST,
        FIRST | {"mask_mode": "pre_softmax"},
        FIRST | {"mask": "modified_causal"},
        FIRST | {"mask": "modified_causal", "mask_mode": "pre_softmax"},
        {"mask": "modified_causal"},
        VIT,
        VIT | {"layer_scale": 0.1},
        TWO,
        {"depth": 1},
        {"num_classes": 0},
    ],
    ids=lambda edits: "-".join(map(str, edits.values())) or "illama",
)
def test_logits_and_every_gradient_are_the_same(edits: dict[str, Any], softness: float) -> None:
    model, batch = model_of(**edits), images()
    model.set_softness(softness)
    expected, found = outcome(model, batch, False), outcome(model, batch, True)
    assert_equal(found, expected)
    alone = edits.get("mask") is None and edits.get("cls_position") == "first" and softness == 0
    if not (
        alone and edits.get("mask_mode") == "pre_softmax"
    ):  # there a class token that stands first sees itself only
        assert all(torch.count_nonzero(value) for value in expected.values())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "edits",
    [
        {"drop_path": 0.4, "drop_path_shape": "constant"},
        {"drop_rate": 0.3},
        {"drop_path": 0.4, "drop_rate": 0.3, "layer_scale": 0.2} | FIRST,
    ],
    ids=["drop path", "dropout", "both"],
)
def test_the_same_random_numbers_drop_the_same(edits: dict[str, Any], checkpointing: bool) -> None:
    model, batch = model_of(**edits).train(), images(batch=8)
    model.set_softness(0.3)
    model.set_grad_checkpointing(checkpointing)
    expected, found = outcome(model, batch, False, seed=5), outcome(model, batch, True, seed=5)
    assert_equal(found, expected)
    assert not torch.equal(outcome(model, batch, True, seed=6)["logits"], found["logits"])


def test_checkpointing_changes_nothing() -> None:
    model, batch = model_of(), images()
    plain = outcome(model, batch, True)
    model.set_grad_checkpointing()
    assert_equal(outcome(model, batch, True), plain)


def test_single_precision_is_equal_up_to_rounding() -> None:
    model, batch = model_of().float(), images().float()
    model.set_softness(0.3)
    assert_equal(outcome(model, batch, True), outcome(model, batch, False), tolerance=2e-5)


class Watched:
    """Shapes that come out of a model's last block."""

    def __init__(self, model: ILlama) -> None:
        self.shapes: list[tuple[int, ...]] = []
        model.blocks[-1].register_forward_hook(lambda _, __, out: self.shapes.append(tuple(out.shape)))


@pytest.mark.parametrize("edits", [{}, FIRST])
def test_the_last_block_gives_one_token_unless_told_otherwise(edits: dict[str, Any]) -> None:
    model = model_of(**edits)
    watched = Watched(model)
    model(images())
    model.only_needed_tokens = False
    model(images())
    assert watched.shapes == [(4, 1, 32), (4, 7, 32)]


@pytest.mark.parametrize("pool", ["avg", ""])
def test_a_head_that_sees_other_tokens_gets_them(pool: str) -> None:
    model, batch = model_of(global_pool=pool), images()
    watched = Watched(model)
    assert_equal(outcome(model, batch, True), outcome(model, batch, False))
    assert watched.shapes == [(4, 7, 32)] * 2


@pytest.mark.parametrize("edits", [{}, FIRST])
def test_who_asks_for_features_gets_all_tokens(edits: dict[str, Any]) -> None:
    model, batch = model_of(**edits), images()
    watched = Watched(model)
    tokens = model.forward_features(batch)
    final, intermediates = model.forward_intermediates(batch, output_fmt="NLC", norm=True)
    everything = model.get_features(batch, tokens="all")
    assert watched.shapes == [(4, 7, 32)] * 3
    for found in (final, everything):
        assert torch.equal(found, tokens)
    assert torch.equal(intermediates[-1], model.patch_tokens(tokens))
    torch.testing.assert_close(model.forward_head(tokens), model(batch))


@pytest.mark.parametrize("only_needed", [False, True])
def test_counted_arithmetic_is_the_predicted_one(only_needed: bool) -> None:
    """The tiny model at 224 px: the count is exact, and the saving of the last block alone about 7 percent."""
    config = dataclasses.replace(VARIANTS["tiny"], attention_backend="reference")
    predicted = {True: needed_multiply_adds(config, softness=1.0), False: multiply_adds(config)}
    assert 0.06 < 1 - predicted[True] / predicted[False] < 0.08
    with torch.device("meta"):
        model, batch = ILlama(config), torch.empty(1, 3, 224, 224)
    model.only_needed_tokens = only_needed
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(batch)
    assert counter.get_total_flops() == 2 * predicted[only_needed]


class Adapted(nn.Module):
    """A low-rank adapter around a frozen layer."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, 2, bias=False, dtype=torch.float64)
        self.up = nn.Linear(2, layer.out_features, bias=False, dtype=torch.float64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


def test_an_adapter_around_q_k_v_is_not_bypassed() -> None:
    model, batch = model_of(), images()
    before = model(batch)
    for block in model.blocks:
        block.attn.qkv = Adapted(block.attn.qkv)
    expected, found = outcome(model, batch, False), outcome(model, batch, True)
    assert not torch.allclose(found["logits"], before)
    assert_equal(found, expected)
    assert torch.count_nonzero(found["blocks.2.attn.qkv.down.weight"])


def test_a_hook_on_q_k_v_runs_and_is_heard() -> None:
    model, batch = model_of(), images()
    before = model(batch)
    model.blocks[-1].attn.qkv.register_forward_hook(lambda _, __, out: 1.5 * out)
    expected, found = outcome(model, batch, False), outcome(model, batch, True)
    assert not torch.allclose(found["logits"], before)
    assert_equal(found, expected)
