"""Captured attention is the attention that the fast backends compute, and only one layer's exists at a time."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from illama.analysis.attention.measures import class_attention, class_token_leak, measure_attention
from illama.analysis.capture import each_attention
from illama.analysis.causality.sensitivity import exchange, image_gradient, jacobian_norms
from illama.errors import UserError
from illama.models import ILlama
from tests.analysis.common import KINDS, every_kind, network, some_images


def with_backend(model: ILlama, backend: str) -> ILlama:
    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        block.attn.config = dataclasses.replace(block.attn.config, attention_backend=backend)
    return model


def attended(model: ILlama, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """v and what the network's backend makes of it, (B, h, N, d), of every layer."""
    heads = model.config.num_heads
    values: list[torch.Tensor] = []
    results: list[torch.Tensor] = []
    hooks = []
    blocks: list[Any] = list(model.blocks)
    for block in blocks:
        hooks.append(
            block.attn.qkv.register_forward_hook(
                lambda _, __, out: values.append(out.unflatten(2, (3, heads, -1))[:, :, 2].transpose(1, 2))
            )
        )
        hooks.append(
            block.attn.proj.register_forward_pre_hook(
                lambda _, given: results.append(given[0].unflatten(2, (heads, -1)).transpose(1, 2))
            )
        )
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return values, results


def serves(backend: str, model: ILlama) -> bool:
    """What the documentation says of each backend (docs/causality.md)."""
    post = model.config.mask_mode == "post_softmax" and model.config.mask != "none"
    if backend == "sdpa":
        return not post
    return backend == "reference" or (post and model.config.mask == "causal")


@pytest.mark.parametrize("backend", ["reference", "blocked", "sdpa"])
@pytest.mark.parametrize("softness", [0.0, 0.4, 1.0])
@every_kind
def test_weights_times_values_are_what_the_backends_compute(kind: str, softness: float, backend: str) -> None:
    model, images = with_backend(network(softness, **KINDS[kind]), backend).eval(), some_images()
    if not serves(backend, model):
        with pytest.raises(UserError, match="cannot serve"):
            attended(model, images)
        return
    values, results = attended(model, images)
    products: dict[int, torch.Tensor] = {}

    def visit(layer: int, weights_BhNN: torch.Tensor) -> None:
        products[layer] = weights_BhNN @ values[layer]

    each_attention(model, images, visit)
    assert list(products) == list(range(model.config.depth))
    for layer, result in enumerate(results):
        # Double precision keeps 16 digits, and sums run over 7 tokens and 16 channels.
        torch.testing.assert_close(products[layer], result, rtol=1e-11, atol=1e-12)


def test_in_half_precision_the_weights_are_kept_in_single() -> None:
    """Up to what the half-precision result itself is rounded to: two of its steps, relative to the largest."""
    model, images = network(0.0).to(torch.bfloat16).eval(), some_images().to(torch.bfloat16)
    values, results = attended(model, images)

    def visit(layer: int, weights_BhNN: torch.Tensor) -> None:
        assert weights_BhNN.dtype == torch.float32
        wrong = (weights_BhNN @ values[layer].float() - results[layer].float()).abs().max()
        assert wrong <= 2 * torch.finfo(torch.bfloat16).eps * values[layer].float().abs().max()

    each_attention(model, images, visit)


def test_one_layer_at_a_time() -> None:
    maps: list[Any] = []

    def visit(_: int, weights_BhNN: torch.Tensor) -> None:
        assert all(earlier() is None for earlier in maps), "the maps of an earlier layer still exist"
        maps.append(weakref.ref(weights_BhNN))

    each_attention(network(depth=4), some_images(), visit)
    assert len(maps) == 4


@pytest.mark.parametrize(("layers", "seen", "run"), [([2], [2], 2), ([-1, 0], [0, 3], 3), ([0], [0], 0), ([], [], 0)])
def test_chosen_layers_and_no_block_that_they_do_not_need(layers: list[int], seen: list[int], run: int) -> None:
    model, images = network(depth=4).eval(), some_images()
    expected = [model.get_attention(images, layer) for layer in seen]
    ran: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda *_: ran.append(1))
    visited: dict[int, torch.Tensor] = {}
    each_attention(model, images, visited.__setitem__, layers=layers)
    assert len(ran) == run
    assert list(visited) == seen
    for found, wanted in zip(visited.values(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(UserError, match=f"block {layer} does not exist; the model has blocks 0 to 1"):
        each_attention(network(), some_images(), lambda *_: None, layers=[layer])


@pytest.mark.parametrize(
    "measure",
    [
        *(class_attention, class_token_leak, exchange, image_gradient, jacobian_norms),
        lambda model, images: measure_attention(model, images).curves_LhN,
        lambda model, images: each_attention(model, images, lambda _, weights: assert_no_graph(weights)) or 0,
    ],
)
def test_a_model_and_its_images_are_left_as_they_were(measure: Callable[[ILlama, torch.Tensor], Any]) -> None:
    model, images = network(0.4, drop_path=0.9), some_images(2)
    once, again = measure(model, images), measure(model, images)
    assert torch.equal(torch.as_tensor(once), torch.as_tensor(again)), "drop path must be off"
    assert model.training
    assert float(model.softness) == pytest.approx(0.4)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not images.requires_grad


@pytest.mark.parametrize("measure", [exchange, class_token_leak])
def test_an_exchange_needs_two_images(measure: Callable[[ILlama, torch.Tensor], Any]) -> None:
    with pytest.raises(UserError, match="at least two images; got 1"):
        measure(network(), some_images(1))


def assert_no_graph(weights: torch.Tensor) -> None:
    assert not weights.requires_grad
