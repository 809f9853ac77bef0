"""The evaluation transform equals the published one (timm's), at any size, and travels as plain values."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from illama.data.decode.images import read_image
from illama.data.eval_transform import MODES, EvalTransform, cover, normalize
from illama.errors import UserError
from illama.optional import import_timm
from illama.recipes import load_recipe

PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427


@pytest.mark.parametrize("size", [(224, 224), (64, 64), (96, 160), (160, 96)])
@pytest.mark.parametrize("source", [PHOTO, PHOTO.crop((0, 0, 200, 427)), PHOTO.crop((10, 10, 50, 40))])
def test_crop_equals_timm(size: tuple[int, int], source: Image.Image) -> None:
    import_timm()
    from timm.data import create_transform

    theirs = create_transform((3, *size), interpolation="bicubic", crop_pct=0.875, normalize=False)(source)
    ours = EvalTransform(size, 0.875)(source)
    assert ours.dtype == torch.uint8
    assert ours.shape == (3, *size)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(384, 384), (384, 512)])
def test_warp_equals_timm(size: tuple[int, int]) -> None:
    import_timm()
    from timm.data import create_transform

    theirs = create_transform((3, *size), interpolation="bicubic", crop_pct=1.0, crop_mode="squash", normalize=False)
    assert torch.equal(EvalTransform(size, mode="warp")(PHOTO), theirs(PHOTO))


def test_small_images_are_left_alone() -> None:
    values = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    seen = EvalTransform((32, 32), mode="none")(Image.fromarray(values))
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), values)


def test_another_size_covers_a_small_input() -> None:
    seen = EvalTransform((32, 32), mode="none")(PHOTO)
    assert seen.shape == (3, 32, 32)
    expected = np.asarray(PHOTO.resize((47, 32), Image.Resampling.BICUBIC))[:, 8:40]
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(("size", "mode"), [(32, "none"), (64, "crop"), (224, "crop"), (384, "warp")])
def test_mode_follows_from_the_size(size: int, mode: str) -> None:
    recipe = load_recipe("imagenet1k_tiny", [f"model.img_size={size}"])
    transform = EvalTransform.of(recipe)
    assert (transform.mode, transform.img_size) == (mode, (size, size))
    assert transform.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("shape", [(1, 1), (4000, 20), (3, 900)])
def test_extreme_shapes(shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, (10, 120, 240))
    for mode in MODES:
        seen = EvalTransform((224, 224), mode=mode)(image)
        assert (seen == torch.tensor([10, 120, 240]).view(3, 1, 1)).all()


def test_messy_images_make_one_batch(shared_data: Path) -> None:
    folder = shared_data / "messy"
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    transform = EvalTransform((224, 224))
    batch = torch.stack([transform(read_image(folder / entry["file"])) for entry in files if entry["readable"]])
    assert batch.shape == (15, 3, 224, 224)


def test_normalisation_by_hand() -> None:
    images = torch.tensor([[0, 255], [51, 102]], dtype=torch.uint8).view(1, 2, 1, 2)
    out = normalize(images, (0.5, 0.1), (0.25, 0.2))
    torch.testing.assert_close(out.flatten(), torch.tensor([-2.0, 2.0, 0.5, 1.5]))
    transform = EvalTransform((1, 2), mean=(0.5,), std=(0.5,), in_chans=1)
    assert transform.normalize(images[:, :1], "cpu", torch.bfloat16).dtype == torch.bfloat16


def test_grey_input() -> None:
    seen = EvalTransform((64, 64), mean=(0.5,), std=(0.5,), in_chans=1)(PHOTO)
    assert seen.shape == (1, 64, 64)


def test_plain_values_restore_it() -> None:
    transform = EvalTransform((96, 64), 0.9, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "crop", 3)
    assert EvalTransform.from_dict(json.loads(json.dumps(transform.to_dict()))) == transform


def test_checkpoints_from_before_the_interpolation_are_bicubic() -> None:
    plain = EvalTransform((96, 64)).to_dict()
    del plain["interpolation"]
    assert EvalTransform.from_dict(plain) == EvalTransform((96, 64), interpolation="bicubic")


@pytest.mark.parametrize("mode", ["crop", "warp", "none"])
def test_bilinear_is_pillows(mode: str) -> None:
    seen = EvalTransform((32, 32), 0.5, mode=mode, interpolation="bilinear")(PHOTO)  # type: ignore[arg-type]
    full = {"crop": (95, 64), "warp": (32, 32), "none": (47, 32)}[mode]
    left, top = round((full[0] - 32) / 2), (full[1] - 32) // 2
    expected = PHOTO.resize(full, Image.Resampling.BILINEAR).crop((left, top, left + 32, top + 32))
    assert np.array_equal(seen.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_warp_and_crop() -> None:
    """Both sides to size / crop_pct, then the centre; also for an image that has the input's size already."""
    for image in (PHOTO, PHOTO.resize((48, 32))):
        seen = EvalTransform((32, 48), 0.8, mode="warp_crop")(image)
        expected = image.resize((60, 40), Image.Resampling.BICUBIC).crop((6, 4, 54, 36))
        assert np.array_equal(seen.permute(1, 2, 0).numpy(), np.asarray(expected))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(UserError, match="interpolation 'lanczos' is not one of bicubic, bilinear"):
        EvalTransform((8, 8), interpolation="lanczos")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="needs as many"):
        EvalTransform((8, 8), in_chans=1)
    with pytest.raises(UserError, match="'squash' is not one of crop, warp, none"):
        EvalTransform((8, 8), mode="squash")  # type: ignore[arg-type]
    for values in ({"std": (0.5, 0.0, 0.5)}, {"crop_pct": 0.0}, {"crop_pct": 1.5}):
        with pytest.raises(UserError, match=r"std .* at least 1e-06"):
            EvalTransform((8, 8), **values)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="finite numbers"):
        EvalTransform((8, 8), mean=(0.5, float("nan"), 0.5))
    for plain in ({}, {"img_size": [8, 8], "zoom": 2}):
        with pytest.raises(UserError, match="transform of the weights cannot be read"):
            EvalTransform.from_dict(plain)


def test_cover_does_not_build_the_whole_resized_panorama() -> None:
    panorama = PHOTO.resize((4000, 20))
    middle = cover(panorama, (224, 224), 0.875)
    wide = panorama.resize((51200, 256), Image.Resampling.BICUBIC).crop((25488, 16, 25712, 240))
    assert np.abs(np.asarray(middle, np.int32) - np.asarray(wide, np.int32)).max() <= 3
