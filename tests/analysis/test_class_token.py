"""The class token's attention, and how much of the picture reaches the logits."""

from __future__ import annotations

import math

import pytest
import torch

from illama.analysis import class_attention, class_token_leak
from illama.errors import UserError
from tests.analysis.common import KINDS, every_kind, network, some_images


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


def test_a_model_is_left_as_it_was() -> None:
    model, images = network(0.4, drop_path=0.9), some_images()
    first = class_attention(model, images), class_token_leak(model, images)
    assert torch.equal(class_attention(model, images), first[0]), "drop path must be off"
    assert class_token_leak(model, images) == first[1]
    assert model.training
    assert float(model.softness) == pytest.approx(0.4)


def test_an_exchange_needs_two_images() -> None:
    with pytest.raises(UserError, match="at least two images; got 1"):
        class_token_leak(network(), some_images(1))
