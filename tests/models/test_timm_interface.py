"""Looking inside: tokens of any block, maps, attention."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from illama import ILlama, ModelConfig, UserError

CONFIG = ModelConfig(img_size=(16, 24), patch_size=8, num_classes=5, embed_dim=32, depth=3, num_heads=2)
IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture(params=["last", "first"])
def model(request: pytest.FixtureRequest) -> ILlama:
    mask = "causal" if request.param == "last" else "modified_causal"
    return ILlama(dataclasses.replace(CONFIG, cls_position=request.param, mask=mask)).eval()


def test_features_of_the_last_block_lead_to_the_logits(model: ILlama) -> None:
    cls = model.get_features(IMAGES, tokens="class")
    torch.testing.assert_close(model.head(cls), model(IMAGES))  # the last block computes the class token alone here


def test_shapes_and_order(model: ILlama) -> None:
    everything = model.get_features(IMAGES, block=1, tokens="all", norm=False)
    patches = model.get_features(IMAGES, block=1, norm=False)
    cls = model.get_features(IMAGES, block=-2, tokens="class", norm=False)
    assert (everything.shape, patches.shape, cls.shape) == ((2, 7, 32), (2, 6, 32), (2, 32))
    own_order = [patches, cls[:, None]] if model.config.cls_position == "last" else [cls[:, None], patches]
    assert torch.equal(torch.cat(own_order, 1), everything)
    as_map = model.get_features(IMAGES, block=1, norm=False, layout="map")
    assert as_map.shape == (2, 32, 2, 3)
    assert torch.equal(as_map[:, :, 1, 2], patches[:, 5])
    assert torch.equal(model.get_features(IMAGES, block=1), model.norm(patches))


def test_attention_of_every_block_is_what_multiplies_v(model: ILlama) -> None:
    x, rope = model.embed(IMAGES), model.rope.tables()
    for index, block in enumerate(model.blocks):
        weights = model.get_attention(IMAGES, block=index)
        assert weights.shape == (2, 2, 7, 7)
        normed = block.norm1(x)
        v = block.attn.qkv(normed).unflatten(2, (3, 2, -1))[:, :, 2].transpose(1, 2)
        out = block.attn.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(out, block.attn(normed, model.softness, rope))
        x = block(x, model.softness, rope)
    assert torch.equal(model.get_attention(IMAGES, block=-1, head=1), model.get_attention(IMAGES)[:, 1])


def test_attention_comes_even_where_the_model_uses_sdpa() -> None:
    model = ILlama(dataclasses.replace(CONFIG, mask_mode="pre_softmax", attention_backend="sdpa"))
    weights = model.get_attention(IMAGES, block=0)
    assert torch.count_nonzero(weights.triu(1)) == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7))


def test_unknown_places_are_named(model: ILlama) -> None:
    with pytest.raises(UserError, match="blocks 0 to 2"):
        model.get_features(IMAGES, block=3)
    with pytest.raises(UserError, match="heads 0 to 1"):
        model.get_attention(IMAGES, head=2)
    with pytest.raises(UserError, match="patches"):
        model.get_features(IMAGES, tokens="class", layout="map")


def test_forward_intermediates_agrees_with_get_features(model: ILlama) -> None:
    final, maps = model.forward_intermediates(IMAGES, indices=[0, 2], norm=True)
    assert torch.equal(final, model.forward_features(IMAGES))
    for block, found in zip((0, 2), maps, strict=True):
        assert torch.equal(found, model.get_features(IMAGES, block=block, layout="map"))
    pairs = model.forward_intermediates(
        IMAGES, indices=1, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    patches, cls = pairs[0]
    assert torch.equal(patches, model.get_features(IMAGES, norm=False))
    assert torch.equal(cls[:, 0], model.get_features(IMAGES, tokens="class", norm=False))


def test_stop_early_skips_later_blocks(model: ILlama) -> None:
    ran = []
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda *_, i=index: ran.append(i))
    model.forward_intermediates(IMAGES, indices=[0, 1], stop_early=True, intermediates_only=True)
    assert ran == [0, 1]
