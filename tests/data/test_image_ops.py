"""Batched colour and geometry equal Pillow's, as timm uses it, on real photographs' statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from illama.data.augment import batched
from illama.data.augment.batched import COLOUR, GEOMETRY, OPS, PLAIN, Layer, RandAugment, apply_parts, in_parts
from illama.data.augment.image_ops import rotation, warp
from illama.data.rng import Draws, DrawShare
from illama.errors import UserError
from illama.optional import import_timm
from illama.recipes import load_recipe

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    """(12, 3, 32, 32) uint8 cut from scikit-learn's two photographs, one of them flat."""
    cuts = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name)).resize((160, 106))
        cuts += [np.asarray(photo)[y : y + 32, x : x + 32] for y in (5, 60) for x in (0, 60, 120)]
    cuts[3] = np.full_like(cuts[3], 77)
    return torch.from_numpy(np.stack(cuts)).permute(0, 3, 1, 2).contiguous()


def _pillow(images: torch.Tensor) -> list[Image.Image]:
    if images.shape[1] == 1:
        return [Image.fromarray(image[0].numpy()) for image in images]
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]


def _tensor(image: Image.Image) -> torch.Tensor:
    values = torch.from_numpy(np.array(image))
    return values[None] if values.ndim == 2 else values.permute(2, 0, 1)


def _timm_op(name: str):
    import_timm()
    from timm.data import auto_augment as theirs

    names = {"translate_x": "translate_x_rel", "translate_y": "translate_y_rel"}
    return getattr(theirs, names.get(name, name))


ARGUMENTS = {
    "posterize": [0, 1, 2, 3, 4],
    "solarize": [0, 26, 128, 256],
    "solarize_add": [0, 50, 99, 110],
    "color": [0.1, 0.55, 1.0, 1.9],
    "contrast": [0.1, 0.55, 1.0, 1.9],
    "brightness": [0.1, 0.55, 1.0, 1.9],
    "sharpness": [0.1, 0.55, 1.0, 1.9],
    "rotate": [-30.0, -7.3, 0.0, 12.5, 30.0],
    "shear_x": [-0.3, 0.17],
    "shear_y": [-0.3, 0.17],
    "translate_x": [-0.45, 0.1, 0.25],
    "translate_y": [-0.45, 0.1, 0.25],
}


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("name", OPS)
def test_operation_equals_pillow(images: torch.Tensor, name: str, channels: int) -> None:
    images = images[:, :channels].contiguous()
    fill = FILL[:channels]
    for argument in ARGUMENTS.get(name, [0.0]):
        layer = Layer(torch.full((len(images),), OPS.index(name)), torch.full((len(images),), float(argument)))
        ours = apply_parts(images, in_parts(layer, *images.shape[2:]), fill)
        options = {"resample": Image.Resampling.BICUBIC, "fillcolor": fill} if name in GEOMETRY else {}
        arguments = () if name in PLAIN else (int(argument) if name.startswith(("post", "solar")) else argument,)
        theirs = torch.stack([_tensor(_timm_op(name)(image, *arguments, **options)) for image in _pillow(images)])
        off = (ours.int() - theirs.int()).abs()
        if name in GEOMETRY:  # at the very edge float32 may decide differently whether a pixel is inside
            assert (off > 1).float().mean() < 0.002, (argument, off.max())
        else:
            assert off.max() <= 1, argument
        assert (off == 0).float().mean() > 0.98, argument


def test_leaves_other_images_and_the_input_alone(images: torch.Tensor) -> None:
    before = images.clone()
    op = torch.full((len(images),), -1)
    op[::2] = OPS.index("invert")
    out = apply_parts(images, in_parts(Layer(op, torch.zeros(len(images))), *images.shape[2:]), FILL)
    assert torch.equal(images, before)
    assert torch.equal(out[1::2], images[1::2])
    assert torch.equal(out[::2], 255 - images[::2])


def test_bilinear_rotation_equals_pillow(images: torch.Tensor) -> None:
    turned = warp(images, rotation(torch.full((len(images),), 9.0), 32, 32), (0, 0, 0), taps=2)
    theirs = torch.stack([_tensor(image.rotate(9, Image.Resampling.BILINEAR)) for image in _pillow(images)])
    assert ((turned.int() - theirs.int()).abs() > 1).float().mean() < 0.002


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-n3-p0.7", "rand-m9-mstd101-inc1", "rand-m15-mmax12"])
def test_levels_and_strings_agree_with_timm(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same magnitude gives the same argument for every operation, and the string the same settings."""
    import_timm()
    from timm.data import auto_augment as theirs

    policy, ours = theirs.rand_augment_transform(text, dict(theirs._HPARAMS_DEFAULT)), RandAugment.parse(text)
    by_name = {op.name.removesuffix("Increasing").removesuffix("Rel"): op for op in policy.ops}
    spelled = {"".join(part.capitalize() for part in name.split("_")): name for name in OPS}
    assert set(by_name) == set(spelled)
    assert policy.num_layers == ours.layers
    for name, op in by_name.items():
        assert (op.prob, op.magnitude, op.magnitude_std) == (ours.prob, ours.magnitude, ours.magnitude_std)
        assert (op.magnitude_max or 10) == ours.magnitude_max
        if op.level_fn is None:
            continue
        for sign, draw in ((-1.0, 0.9), (1.0, 0.1)):  # timm negates when its draw is above one half
            monkeypatch.setattr(theirs.random, "random", lambda draw=draw: draw)
            for magnitude in (0.0, 0.37, 5.0, 9.0, 10.0):
                level = torch.tensor([magnitude / 10], dtype=torch.float64)
                argument = ours._argument(spelled[name], level, torch.tensor([sign], dtype=torch.float64))
                if name.startswith("Translate"):
                    assert op.hparams.get("translate_pct", 0.45) == 0.45
                assert argument.item() == pytest.approx(op.level_fn(magnitude, op.hparams)[0], abs=1e-6), name


def test_drawn_layers_have_the_stated_frequencies() -> None:
    settings = RandAugment.parse("rand-m9-mstd0.5-inc1")
    first, second = settings.draw(Draws([torch.Generator().manual_seed(1)], DrawShare(30_000)))
    for layer in (first, second):
        assert (layer.op >= 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
        share = torch.bincount(layer.op[layer.op >= 0], minlength=len(OPS)) / (layer.op >= 0).sum()
        assert share.sub(1 / len(OPS)).abs().max() < 0.01
        degrees = layer.argument[layer.op == OPS.index("rotate")]
        assert degrees.abs().mean().item() == pytest.approx(27, abs=0.3)
        assert degrees.abs().std().item() == pytest.approx(1.45, abs=0.3)  # 0.5 of 10 x 30 degrees, cut at 30
        assert (degrees > 0).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert not torch.equal(first.op, second.op)


def test_jitter_uses_each_operation_once_with_factors_around_one() -> None:
    layers = batched.draw_jitter(0.4, Draws([torch.Generator().manual_seed(0)], DrawShare(2000)))
    used = torch.stack([layer.op for layer in layers]).sort(0).values
    assert (used == torch.tensor(sorted(OPS.index(n) for n in ("color", "contrast", "brightness")))[:, None]).all()
    factors = torch.stack([layer.argument for layer in layers])
    assert 0.6 <= factors.min() < 0.62
    assert 1.38 < factors.max() <= 1.4
    assert len({tuple(column) for column in torch.stack([layer.op for layer in layers]).T.tolist()}) == 6


@pytest.mark.parametrize("text", ["rand-m9-w0", "rand-m9.5", "rand-n2.5", "rand-m9-inc0.5", "rand-mmax1.5", "rand-z1"])
def test_recipes_refuse_what_timm_does_not_understand(text: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        import_timm().data.auto_augment.rand_augment_transform(text, {})
    with pytest.raises(UserError, match=r"augment\.randaugment: allowed: text like rand-m9-"):
        load_recipe("cifar10_micro", [f"augment.randaugment={text}"])


@pytest.mark.parametrize(
    "text", ["rand-m9-mstd0.5-inc1", "rand-n3-p0.5-m0", "rand-mstd101-mmax20", "rand-p1-inc0-m9-m8"]
)
def test_what_recipes_accept_both_understand(text: str) -> None:
    load_recipe("cifar10_micro", [f"augment.randaugment={text}"])
    theirs = import_timm().data.auto_augment.rand_augment_transform(text, {})
    assert RandAugment.parse(text).layers == theirs.num_layers


def test_every_operation_is_covered() -> None:
    assert set(OPS) == set(PLAIN) | set(COLOUR) | set(GEOMETRY)
    assert len(OPS) == 15
