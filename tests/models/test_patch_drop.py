"""A step that keeps some patches computes what a network of these tokens alone computes, each at its own position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from illama import ILlama
from illama.attention import attention_weights
from tests.models.test_class_token_only import FIRST, TWO, VIT, images, model_of

KEPT = torch.tensor([0, 2, 3, 5])  # of 6


def by_hand(model: ILlama, batch: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Logits, written out: the tokens of the kept patches in order, rotated by the angles of their own places."""
    config, last = model.config, model.config.cls_position == "last"
    patches = model.patch_embed(batch)[:, kept]
    places = [*kept.tolist(), config.num_patches] if last else [0, *(kept + 1).tolist()]
    class_token = model.cls_token.expand(len(batch), 1, -1)
    x = torch.cat((patches, class_token) if last else (class_token, patches), 1)
    if model.pos_embed is not None:
        x = x + torch.stack([model.pos_embed[:, place] for place in places], 1)
    rope = None
    if model.rope is not None:
        angles = model.rope.angles()[places]
        rope = angles.cos(), angles.sin()
    for block in model.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).unflatten(2, (3, config.num_heads, -1)).permute(2, 0, 3, 1, 4)
        how: dict[str, Any] = {"mask": config.mask, "mask_mode": config.mask_mode, "rope": rope}
        attended = attention_weights(q, k, model.softness, **how) @ v
        x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    x = model.norm(x)
    if config.global_pool == "avg":
        return model.head((x[:, :-1] if last else x[:, 1:]).mean(1))
    return model.head(x[:, -1 if last else 0])


@pytest.mark.parametrize("softness", [0.0, 0.4])
@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"mask_mode": "pre_softmax"},
        {"attention_backend": "reference"},
        {"attention_backend": "blocked"},
        {"mask_mode": "pre_softmax", "attention_backend": "sdpa"},
        {"mask": "modified_causal"},
        {"position": "rope2d"},
        {"position": "learned"},
        {"global_pool": "avg"},
        FIRST | {"mask": "modified_causal", "mask_mode": "pre_softmax"},
        FIRST | {"global_pool": "avg"},
        VIT,
        TWO,
    ],
    ids=lambda edits: "-".join(map(str, edits.values())) or "illama",
)
def test_it_is_the_network_of_the_kept_tokens(edits: dict[str, Any], softness: float) -> None:
    """Logits and the gradient of every parameter."""
    model, batch = model_of(**edits).train(), images()
    model.set_softness(softness)
    outcomes = []
    for logits in (model(batch, KEPT), by_hand(model, batch, KEPT)):
        model.zero_grad()
        logits.square().sum().backward()
        outcomes.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert outcomes[1][0].norm() > 0
    for found, expected in zip(*outcomes, strict=True):
        assert (found - expected).norm() <= 1e-12 * expected.norm()
    assert not torch.allclose(outcomes[0][0], model(batch))


def test_all_patches_are_the_whole() -> None:
    model, batch = model_of(), images()
    assert torch.equal(model(batch, torch.arange(6)), model(batch))


def test_each_number_of_patches_is_one_graph() -> None:
    """Other patches of the same number need no other graph."""
    torch._dynamo.reset()
    model, batch = model_of().float().train(), images().float()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for kept, graphs in ((KEPT, 1), (KEPT + torch.tensor([0, 0, 1, 0]), 1), (None, 2), (KEPT, 2)):
        torch.testing.assert_close(compiled(batch, kept), model(batch, kept), rtol=1e-5, atol=1e-5)
        assert counter.frame_count == graphs
    torch._dynamo.reset()
