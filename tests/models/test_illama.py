"""The model as a module: initialisation, softness, precision, stochastic depth, checkpointing, sizes."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from illama import ILlama, ModelConfig, UserError
from illama.models import PEERS, ROADMAP, VARIANTS, roadmap_config
from illama.models.layers import DropPath, PatchEmbed, in_patches

SMALL = ModelConfig(img_size=(16, 24), patch_size=8, num_classes=5, embed_dim=32, depth=3, num_heads=2)


def images(config: ModelConfig = SMALL, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, config.in_chans, *config.height_width)


def test_initialisation_is_the_published_one() -> None:
    torch.manual_seed(0)
    model = ILlama(dataclasses.replace(VARIANTS["tiny"], layer_scale=1e-4))
    for name, parameter in model.named_parameters():
        p = parameter.detach()
        if "patch_embed" in name:
            bound = (3 * 16 * 16) ** -0.5  # Conv2d's default: uniform, a = sqrt(5)
            assert p.abs().max() <= bound
            assert p.std() == pytest.approx(bound / 3**0.5, rel=0.15)
        elif "gamma" in name:
            assert torch.all(p == 1e-4)
        elif name.endswith("bias"):
            assert torch.count_nonzero(p) == 0
        elif p.ndim == 1:
            assert torch.all(p == 1)
        else:
            assert p.std() == pytest.approx(0.02, rel=0.15), name
            assert p.mean() == pytest.approx(0, abs=0.004), name


def test_softness_is_a_buffer_that_is_not_saved() -> None:
    model = ILlama(SMALL)
    assert model.softness.shape == ()
    assert "softness" in dict(model.named_buffers())
    assert "softness" not in model.state_dict()
    assert float(model.softness) == 0.0
    for bad in (-0.1, 1.1):
        with pytest.raises(UserError, match="between 0"):
            model.set_softness(bad)


def test_half_precision_keeps_softness_and_rotation_tables() -> None:
    model = ILlama(SMALL)
    model.set_softness(0.35)
    cos = model.rope.cos.clone()
    model.bfloat16()
    assert float(model.softness) == pytest.approx(0.35, abs=1e-7)
    assert model.rope.cos.dtype == torch.float32
    assert torch.equal(model.rope.cos, cos)
    assert model(images().bfloat16()).dtype == torch.bfloat16
    assert model.double().rope.cos.dtype == torch.float64
    assert not torch.equal(model.rope.cos, cos.double()), "a double model needs the digits that float32 lost"


def test_built_on_the_meta_device_nothing_is_forgotten() -> None:
    """Every buffer and parameter is set by materialising, initialising and loading."""
    with torch.device("meta"):
        model = ILlama(SMALL)
    model.to_empty(device="cpu")
    model.set_softness(0.0)
    model.load_state_dict(ILlama(SMALL).state_dict())
    assert torch.isfinite(model(images())).all()


@pytest.mark.parametrize("row", [*ROADMAP, *PEERS])
def test_every_roadmap_row_trains_every_parameter(row: str) -> None:
    config = roadmap_config(row, "tiny", **{f: getattr(SMALL, f) for f in ("img_size", "patch_size", "num_classes")})
    model = ILlama(dataclasses.replace(config, embed_dim=32, num_heads=2, depth=2, layer_scale=None))
    model(images()).sum().backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    if row == "llama_attention":  # the collapse: a class token that stands first gets all but nothing of the image
        silent = [name for name in silent if "patch_embed" not in name and "pos_embed" not in name]
    assert not silent


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"img_size": 17}, r"img_size: 17 is not a positive multiple of patch_size \(8\)"),
        ({"num_heads": 3}, "3 does not divide embed_dim"),
        ({"embed_dim": 6, "num_heads": 2}, "divisible by 2"),
        ({"embed_dim": 12, "num_heads": 2, "position": "rope2d"}, "divisible by 4"),
        ({"mask": "diagonal", "ffn": "glu"}, r"ffn.*mask"),
        ({"drop_path": 1.0, "depth": 0}, r"depth.*drop_path"),
    ],
)
def test_impossible_configurations_name_what_is_allowed(edits: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(SMALL, **edits)


def test_config_survives_plain_values() -> None:
    assert ModelConfig(**SMALL.to_dict()) == SMALL


class TestDropPath:
    def test_drops_whole_samples_and_keeps_the_mean(self) -> None:
        torch.manual_seed(0)
        drop = DropPath()
        drop.set_rate(0.25)
        out = drop(torch.ones(4000, 2, 3))
        values = out[:, 0, 0]
        assert torch.equal(out, values.view(-1, 1, 1).expand_as(out))
        assert torch.all((values == 0) | torch.isclose(values, torch.tensor(4 / 3)))
        assert values.mean() == pytest.approx(1.0, abs=0.05)
        assert torch.equal(drop.eval()(torch.ones(3, 1)), torch.ones(3, 1))

    def test_the_two_branches_of_a_block_draw_independently(self) -> None:
        torch.manual_seed(0)
        model = ILlama(SMALL)
        model.set_drop_path(0.5)
        block = model.blocks[2]
        kept = []
        for module in (block.drop_path1, block.drop_path2):
            kept.append(module(torch.ones(400, 1)).flatten() > 0)
        assert 0.3 < (kept[0] == kept[1]).float().mean() < 0.7

    def test_shapes(self) -> None:
        constant = ILlama(dataclasses.replace(SMALL, drop_path=0.2, drop_path_shape="constant"))
        assert [block.drop_path1.rate for block in constant.blocks] == [0.2, 0.2, 0.2]
        assert [b.drop_path1.rate for b in ILlama(dataclasses.replace(SMALL, drop_path=0.2)).blocks] == [0, 0.1, 0.2]


def test_gradient_checkpointing_happens_and_changes_nothing() -> None:
    """Every block runs forward twice; gradients, drop path included, are those without it."""
    model = ILlama(dataclasses.replace(SMALL, drop_path=0.5)).train()
    runs = [0] * len(model.blocks)
    for index, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda *_, i=index: runs.__setitem__(i, runs[i] + 1))
    batch = images()
    gradients = []
    for enabled in (False, True):
        model.set_grad_checkpointing(enabled)
        torch.manual_seed(3)
        model.zero_grad()
        model(batch).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert runs == [3 if enabled else 1] * 3
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


class TestSizes:
    def test_wrong_image_size_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"\(2, 3, 16, 16\).*set_input_size"):
            ILlama(SMALL)(torch.zeros(2, 3, 16, 16))

    def test_set_input_size_equals_a_model_built_that_size(self) -> None:
        model = ILlama(SMALL)
        resized = copy.deepcopy(model)
        resized.set_input_size((32, 16))
        built = ILlama(dataclasses.replace(SMALL, img_size=(32, 16)))
        built.load_state_dict(resized.state_dict())
        batch = torch.randn(2, 3, 32, 16)
        assert torch.equal(resized(batch), built(batch))
        assert torch.equal(resized.pos_embed[:, -1], model.pos_embed[:, -1])
        resized.set_input_size((16, 24))
        assert resized(images()).shape == (2, 5)

    def test_other_patch_size_needs_other_weights(self) -> None:
        with pytest.raises(UserError, match="build a new model"):
            ILlama(SMALL).set_input_size(32, patch_size=4)

    def test_position_of_the_patches_is_raster_order(self) -> None:
        """A patch's content moves only its own embedded token."""
        model = ILlama(SMALL)
        batch = images(batch=1)
        changed = batch.clone()
        changed[:, :, 8:16, 16:24] += 1  # row 1, column 2 of a 2 x 3 grid
        moved = (model.embed(changed) - model.embed(batch)).abs().sum(-1)[0]
        assert moved.nonzero().flatten().tolist() == [5]
        assert len(moved) == 7

    @pytest.mark.parametrize("pool", ["token", "avg", ""])
    def test_pooling_and_headless(self, pool: str) -> None:
        model = ILlama(dataclasses.replace(SMALL, global_pool=pool))
        expected = (2, 7, 5) if pool == "" else (2, 5)
        assert model(images()).shape == expected
        model.reset_classifier(0)
        assert isinstance(model.head, nn.Identity)
        assert model(images()).shape == (*expected[:-1], 32)
        model.reset_classifier(9, "token")
        assert model(images()).shape == (2, 9)
        assert model.num_classes == 9


@pytest.mark.parametrize("layer_decay", [None, 0.5])
def test_layer_wise_groups(layer_decay: float | None) -> None:
    from illama.training.optim import param_groups

    model = ILlama(SMALL)
    scales = {name: group["lr_scale"] for group in param_groups(model, 0.1, layer_decay) for name in group["names"]}
    assert set(scales) == {name for name, _ in model.named_parameters()}
    if layer_decay is None:
        assert set(scales.values()) == {1.0}
    else:  # groups: embeddings, three blocks, norm and head
        assert scales["cls_token"] == scales["pos_embed"] == scales["patch_embed.proj.weight"] == 0.5**4
        assert [scales[f"blocks.{i}.attn.qkv.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
        assert scales["norm.weight"] == scales["head.weight"] == 1.0


def test_patches_are_one_product_on_cuda() -> None:
    """cuDNN's convolution would round to TF32; the product is the same sum."""
    config = ModelConfig(img_size=(24, 16), patch_size=8, in_chans=3, embed_dim=12, depth=1, num_heads=2)
    embed, images = PatchEmbed(config).double(), torch.randn(5, 3, 24, 16, dtype=torch.float64)
    product = in_patches(images, 8) @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(product, embed(images), rtol=1e-12, atol=1e-12)
    asked: list[str] = []

    class Asked(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            asked.append(str(func))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.no_grad():
        there = {name: torch.empty(weight.shape, device="cuda") for name, weight in embed.named_parameters()}
        with Asked():
            tokens = torch.func.functional_call(embed, there, torch.empty(5, 3, 24, 16, device="cuda"))
    assert (tokens.shape, tokens.device.type) == ((5, 6, 12), "cuda")
    assert not [name for name in asked if "conv" in name]
