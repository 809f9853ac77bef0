"""Compiled: one full graph for every softness and drop-path rate, equal to eager; exported: plain operators."""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

from illama import ILlama, ModelConfig

TOY = ModelConfig(img_size=32, patch_size=8, num_classes=5, embed_dim=32, depth=2, num_heads=2)
VIT = {"cls_position": "first", "mask": "none", "ffn": "mlp", "norm": "layer", "position": "learned"}


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 4])


def toy(**edits: Any) -> ILlama:
    model = ILlama(dataclasses.replace(TOY, **edits))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def gradients(model: ILlama, loss_of: Callable, images: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss = loss_of(images, targets)
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for mine, other in zip(found, expected, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-7


def assert_graphs(counter: CompileCounterWithBackend, count: int) -> None:
    assert counter.frame_count == count
    assert not counters["graph_break"]


POST = [
    {},
    {"attention_backend": "blocked"},
    {"attention_backend": "reference"},
    {"cls_position": "first", "mask": "modified_causal", "position": "rope2d"},
    VIT,
]


@pytest.mark.parametrize("edits", POST, ids=["auto", "blocked", "reference", "modified", "vit"])
def test_one_graph_serves_all_softness(edits: dict[str, Any]) -> None:
    model, (images, _) = toy(**edits).eval(), batch()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for softness in (1.0, 0.5, 0.25, 0.0):
            model.set_softness(softness)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
    assert_graphs(counter, 1)


def test_before_the_softmax_there_is_a_second_graph_for_the_causal_mask() -> None:
    """SDPA must know that the softness is 0 to use its causal kernel; all others share a graph."""
    model, (images, _) = toy(mask_mode="pre_softmax").eval(), batch()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    with torch.no_grad():
        for softness, graphs in ((1.0, 1), (0.5, 1), (0.25, 1), (0.0, 2), (0.7, 2), (0.0, 2)):
            model.set_softness(softness)
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)
            assert_graphs(counter, graphs)


@pytest.mark.parametrize("backend", ["auto", "blocked"])
def test_training_is_one_graph_while_softness_and_drop_path_move(backend: str) -> None:
    """Forward and loss compiled, AdamW after each step, against the same steps in eager mode.

    Stochastic depth draws the same samples in both, because both start from the same state of the generator.
    """
    model = toy(attention_backend=backend, drop_path=0.3, drop_path_shape="constant").train()
    eager = copy.deepcopy(model)
    images, targets = batch()
    counter = CompileCounterWithBackend("aot_eager")
    loss_of = {m: lambda images, targets, m=m: F.cross_entropy(m(images), targets) for m in (model, eager)}
    compiled = torch.compile(loss_of[model], backend=counter, fullgraph=True)
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-3) for m in (model, eager)]
    dropped = False
    for step, (softness, rate) in enumerate([(1.0, 0.3), (0.75, 0.2), (0.5, 0.1), (0.25, 0.4), (0.0, 0.05)]):
        for m in (model, eager):
            m.set_softness(softness)
            m.set_drop_path(rate)
        torch.manual_seed(step)
        expected = gradients(eager, loss_of[eager], images, targets)
        torch.manual_seed(step)
        found = gradients(model, compiled, images, targets)
        assert_close(found, expected)
        with torch.no_grad():
            dropped |= not torch.allclose(eager.eval()(images), eager.train()(images))
        for optimizer in optimizers:
            optimizer.step()
        with torch.no_grad():  # AdamW divides by the root of tiny gradients: keep rounding from growing
            for mine, other in zip(model.parameters(), eager.parameters(), strict=True):
                mine.copy_(other)
    assert dropped
    assert_graphs(counter, 1)


def test_the_optimizers_step_compiles_beside_it() -> None:
    """Its first step makes its state; after that neither graph is compiled again."""
    model, (images, targets) = toy(drop_path=0.1).train(), batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3))
    losses, updates = CompileCounterWithBackend("aot_eager"), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda x, y: F.cross_entropy(model(x), y), backend=losses, fullgraph=True)
    update = torch.compile(optimizer.step, backend=updates)
    compilations = []
    for softness in (1.0, 0.75, 0.5, 0.0):
        model.set_softness(softness)
        gradients(model, compiled, images, targets)
        before = [p.detach().clone() for p in model.parameters()]
        update()
        assert not any(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        compilations.append((losses.frame_count, updates.frame_count))
    assert compilations[0] > (0, 0)
    assert losses.frame_count == 1
    assert len(set(compilations[1:])) == 1, compilations


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor on the CPU needs a C++ compiler")
def test_generated_code_gives_the_numbers_of_eager_mode() -> None:
    """Inductor, forward and backward."""
    model, (images, targets) = toy(depth=1, embed_dim=16).train(), batch()
    model.set_softness(0.5)
    counter = CompileCounterWithBackend("inductor")

    def loss_of(images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(images), targets)

    compiled = torch.compile(loss_of, backend=counter, fullgraph=True)
    assert_close(gradients(model, compiled, images, targets), gradients(model, loss_of, images, targets))
    model.set_softness(0.0)
    assert_close(gradients(model, compiled, images, targets), gradients(model, loss_of, images, targets))
    assert_graphs(counter, 1)


def exported(model: ILlama, images: torch.Tensor) -> torch.export.ExportedProgram:
    """For batches of any size; it knows torch's own operators alone, and computes the same."""
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch", min=2)},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any("linear" in name for name in called)
    assert not any("illama" in name for name in called), called
    with torch.no_grad():
        for batch in (images, torch.randn(5, *images.shape[1:])):
            torch.testing.assert_close(program.module()(batch), model(batch), rtol=1e-5, atol=1e-5)
    return program


@pytest.mark.parametrize(
    ("edits", "softness"),
    [({}, 0.0), ({}, 0.5), ({"mask_mode": "pre_softmax"}, 0.0), ({"mask_mode": "pre_softmax"}, 0.5), (VIT, 0.0)],
)
def test_exported_without_our_operators(edits: dict[str, Any], softness: float) -> None:
    model, (images, _) = toy(attention_backend="reference", **edits).eval(), batch()
    model.set_softness(softness)
    assert exported(model, images)


@pytest.mark.parametrize("side", [32, 224, 384])
def test_whoever_exports_need_not_choose_a_backend(side: int) -> None:
    """Whatever serves so many tokens otherwise."""
    config = dataclasses.replace(TOY, img_size=side, patch_size=16, depth=1, num_classes=3)
    assert exported(ILlama(config).eval(), torch.randn(2, 3, side, side))
