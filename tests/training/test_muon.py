"""Muon: its step against the equations written out and against torch's own, its groups, its gradients that are not
finite."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from illama import ILlama, ModelConfig
from illama.training.optim import MuonWithAdamW, build_adamw, orthogonal, param_groups, set_lr

TOY = ModelConfig(img_size=16, patch_size=4, num_classes=5, embed_dim=16, depth=2, num_heads=2)
LR, DECAY = 1e-2, 0.1
HOW: dict[str, Any] = {"betas": (0.9, 0.98), "eps": 1e-8}


def model() -> ILlama:
    torch.manual_seed(3)
    return ILlama(TOY).double()


def trained(network: ILlama, optimizer: torch.optim.Optimizer, steps: int = 3) -> list[dict[str, torch.Tensor]]:
    """Gradients by name of each of the steps that were done."""
    images, seen = torch.randn(6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), []
    for _ in range(steps):
        set_lr(optimizer, LR)
        network(images).logsumexp(1).square().mean().backward()
        seen.append({name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
    return seen


def matrices(network: ILlama) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of the blocks; q, k and v one by one."""
    for name, weight in network.blocks.named_parameters(prefix="blocks"):
        if weight.ndim == 2:
            parts = weight.detach().chunk(3) if "qkv" in name else [weight.detach()]
            yield from ((f"{name}/{number}", part) for number, part in enumerate(parts))


def written_out(weight: torch.Tensor, gradients: list[torch.Tensor]) -> torch.Tensor:
    """The equations of `illama.training.optim`, one matrix after the other."""
    mean = torch.zeros_like(weight)
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient
        x = 0.95 * mean + 0.05 * gradient
        x = x / x.norm()
        for _ in range(5):
            x = 3.4445 * x - 4.7750 * (x @ x.T @ x) + 2.0315 * (x @ x.T @ x @ x.T @ x)
        weight = (1 - LR * DECAY) * weight - LR * 0.2 * max(weight.shape) ** 0.5 * x
    return weight


def test_a_step_is_the_one_written_out() -> None:
    """Muon's for every matrix of the blocks; AdamW's own for the rest, though it shares groups and state."""
    network = model()
    before = {name: weight.clone() for name, weight in matrices(network)}
    seen = trained(network, MuonWithAdamW(param_groups(network, DECAY, muon=True), **HOW))
    for name, found in matrices(network):
        whole, number = name.split("/")
        gradients = [step[whole].chunk(3)[int(number)] if "qkv" in name else step[whole] for step in seen]
        torch.testing.assert_close(found, written_out(before[name], gradients), rtol=0, atol=1e-12)
    other = model()
    adamw = build_adamw(param_groups(other, DECAY), **HOW)
    for gradients_of in seen:
        for name, parameter in other.named_parameters():
            parameter.grad = gradients_of[name].clone()
        set_lr(adamw, LR)
        adamw.step()
    rest = [name for name, parameter in other.named_parameters() if parameter.ndim != 2 or "blocks." not in name]
    assert {"head.weight", "patch_embed.proj.weight", "pos_embed", "cls_token", "norm.weight"} <= set(rest)
    mine, theirs = dict(network.named_parameters()), dict(other.named_parameters())
    assert all(torch.equal(mine[name], theirs[name]) for name in rest)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_it_is_torchs_muon_for_a_matrix() -> None:
    """As far as bfloat16, in which torch's iterates, tells."""
    network, single = model().float(), model().float().blocks[0].mlp.fc1.weight
    theirs = torch.optim.Muon([single], lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    before = single.detach().clone()
    gradients = torch.randn(3, *single.shape, generator=torch.Generator().manual_seed(1))
    ours = MuonWithAdamW(param_groups(network, DECAY, muon=True), **HOW)
    set_lr(ours, LR)
    for gradient in gradients:
        network.blocks[0].mlp.fc1.weight.grad, single.grad = gradient.clone(), gradient.clone()
        ours.step()
        theirs.step()
    moved, expected = network.blocks[0].mlp.fc1.weight - before, single - before
    assert (moved - expected).norm() <= 2e-2 * expected.norm()


def test_singular_values_come_near_one() -> None:
    found = torch.linalg.svdvals(orthogonal(torch.randn(4, 24, 10, generator=torch.Generator().manual_seed(2))))
    assert found.min() > 0.6
    assert found.max() < 1.3


def test_nothing_changes_after_a_loss_that_is_not_finite() -> None:
    """Neither weights nor moments, whatever the gradients are; before it, the flag changes nothing."""
    plain, network = model(), model()
    trained(plain, MuonWithAdamW(param_groups(plain, DECAY, muon=True), **HOW))
    optimizer = MuonWithAdamW(param_groups(network, DECAY, muon=True), **HOW)
    optimizer.found_inf = torch.zeros(())
    trained(network, optimizer)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    assert all(torch.equal(before[name], p) for name, p in plain.named_parameters())
    moments = [state["momentum_buffer"].clone() for state in optimizer.state.values() if "momentum_buffer" in state]
    optimizer.found_inf.fill_(1.0)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())
    after = [state["momentum_buffer"] for state in optimizer.state.values() if "momentum_buffer" in state]
    assert len(moments) == 10
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))
