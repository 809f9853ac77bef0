"""Attention collapse (the paper's Sec. 3.3), real and visible on digits: see docs/causality.md."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from illama.models import ILlama, ModelConfig, roadmap_config
from illama.training.optim import build_adamw, param_groups, set_lr

SIZE = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 32, "depth": 3, "num_heads": 2}


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    images = torch.from_numpy(data.images).float().div(8).sub(1).unsqueeze(1)
    return images, torch.from_numpy(data.target)


def trained_loss(config: ModelConfig, steps: int = 150) -> tuple[ILlama, float]:
    """Mean loss of the last 20 of some steps at batch 128."""
    torch.manual_seed(0)
    model = ILlama(config)
    optimizer = build_adamw(param_groups(model, 0.05))
    images, labels = digits()
    losses = []
    for step in range(steps):
        set_lr(optimizer, 3e-3 * min(1.0, (step + 1) / 20))
        chosen = torch.randint(0, len(images), (128,))
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return model, sum(losses[-20:]) / 20


def row(name: str, mask_mode: str) -> ModelConfig:
    return roadmap_config(name, "tiny", mask_mode=mask_mode, **SIZE)


def image_gradient(model: ILlama) -> torch.Tensor:
    """Gradient of the logits with respect to every patch, in double: (B, n) norms."""
    model = model.double().eval()
    images = digits()[0][:4].double().requires_grad_()
    model(images).square().sum().backward()
    return images.grad.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).norm(dim=-1).flatten(1)


def test_cls_first_and_strictly_causal_stays_at_chance() -> None:
    model, loss = trained_loss(row("llama_attention", "pre_softmax"))
    assert loss == pytest.approx(math.log(10), abs=0.02)
    assert torch.count_nonzero(image_gradient(model)) == 0


@pytest.mark.parametrize(
    ("cure", "mask_mode"),
    [
        ("ps_cls", "pre_softmax"),
        ("modified_causal", "post_softmax"),
        pytest.param("ps_cls", "post_softmax", marks=pytest.mark.faults),
        pytest.param("modified_causal", "pre_softmax", marks=pytest.mark.faults),
    ],
)
def test_both_cures_learn(cure: str, mask_mode: str) -> None:
    model, loss = trained_loss(row(cure, mask_mode))
    assert loss < 0.5 * math.log(10)
    assert torch.all(image_gradient(model) > 0)


def test_post_softmax_leaks_into_a_class_token_that_stands_first() -> None:
    """Row 0 keeps one entry of the softmax over all keys: its size, and so the logits, depend on the image."""
    torch.manual_seed(0)
    model = ILlama(row("llama_attention", "post_softmax"))
    leak = image_gradient(model)
    assert torch.all(leak > 0)
    torch.manual_seed(0)
    cured = image_gradient(ILlama(row("ps_cls", "post_softmax")))
    assert leak.mean() < 0.2 * cured.mean(), "the leak is a trace beside what an uncollapsed model sees"
    kept = model.float().get_attention(digits()[0][:4], block=0)[:, :, 0]
    assert torch.count_nonzero(kept[..., 1:]) == 0
    assert torch.all(kept[..., 0] < 0.5)
