"""The roadmap's first row is timm's ViT: same weights, same numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from illama.errors import UserError
from illama.models import ILlama, roadmap_config
from illama.optional import import_timm


@pytest.mark.parametrize(("variant", "depth", "img_size"), [("tiny", 12, 224), ("tiny", 2, (64, 96)), ("base", 2, 64)])
def test_logits_and_gradients(variant: str, depth: int, img_size: int | tuple[int, int]) -> None:
    timm, edits = import_timm(), {"img_size": img_size, "depth": depth, "num_classes": 11}
    theirs = timm.create_model(f"vit_{variant}_patch16_224", **edits).double().eval()
    with torch.no_grad():  # timm starts norms at 1, biases and the head at 0: too plain to find a swapped pair
        for parameter in theirs.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    ours = ILlama(roadmap_config("vit", variant, **edits)).double().eval()
    ours.load_state_dict(theirs.state_dict())
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(2, 11, dtype=torch.float64)
    for model in (ours, theirs):
        (model(images) * weight).sum().backward()
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-11, atol=1e-11)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-11)


def test_the_epsilon_of_the_norms_is_the_configurations() -> None:
    """One so large that it decides the logits."""
    norm = partial(torch.nn.LayerNorm, eps=0.1)
    timm = import_timm()
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5, norm_layer=norm).double()
    torch.nn.init.normal_(theirs.head.weight)
    config = roadmap_config("vit", "tiny", img_size=32, depth=2, num_classes=5, norm_eps=0.1)
    ours = ILlama(config).double().eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(images), theirs.eval()(images), rtol=1e-11, atol=1e-11)


def test_the_epsilon_of_rmsnorm() -> None:
    norm = ILlama(roadmap_config("learned_position", "tiny", img_size=32, depth=1, norm_eps=0.1)).double().norm
    x = torch.randn(3, 192, dtype=torch.float64)
    by_hand = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()
    torch.testing.assert_close(norm(x), by_hand, rtol=1e-12, atol=1e-12)
    with pytest.raises(UserError, match="norm_eps: 2 is not a number from 0 to 1"):
        roadmap_config("vit", norm_eps=2)
