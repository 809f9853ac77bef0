"""Every kind of work is found, in the forward and in the backward pass."""

from __future__ import annotations

import pytest
import torch

from illama.bench.networks import Treatment
from illama.bench.options import ModelOptions
from illama.bench.profile import PYTHON, RESIDUAL, ROTATION, profile
from tests.bench.conftest import TOY, build_networks

CPU = torch.device("cpu")
FORWARD = {"matmul", "attention", "norm", "gate", RESIDUAL, PYTHON}


@pytest.mark.parametrize("training", [False, True])
def test_kinds_of_work(training: bool) -> None:
    ours, vit = build_networks(Treatment(TOY, 2, "float32", CPU, training=training), ModelOptions())
    trained = {"loss", "optimizer"} if training else set()
    found = profile(ours.module, ours.eager, CPU)
    assert set(found) == FORWARD | {ROTATION} | trained
    assert all(seconds > 0 for seconds in found.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert set(profile(vit.module, vit.eager, CPU)) == FORWARD | trained
    for network in (ours, vit):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.module.modules())


class Norm(torch.nn.Module):
    """Square roots stand for what only a norm does here; so many that a busy machine does not turn the order around."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(50):
            x = x.sqrt()
        return x


class Attention(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(64, 64, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(torch.bmm(x, x))


def test_the_backward_pass_belongs_where_the_forward_pass_was() -> None:
    norm = torch.nn.Sequential(Norm())
    x = torch.rand(400, 400, requires_grad=True)
    found = profile(norm, lambda: norm(x).backward(torch.ones_like(x)), CPU)
    assert found["norm"] > found[RESIDUAL]
    assert "attention" not in found
    attention = torch.nn.Sequential(Attention())
    y = torch.rand(8, 64, 64, requires_grad=True)
    found = profile(attention, lambda: attention(y).backward(torch.ones_like(y)), CPU)
    assert {"attention", "matmul"} <= set(found)
    found = profile(attention, lambda: attention[0].proj(y), CPU)
    assert "matmul" in found
    assert "attention" not in found
