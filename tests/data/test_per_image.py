"""Augmentation of single images: timm's crops, timm's operations, Pillow's pixels."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from illama.data.augment import image_ops
from illama.data.augment.per_image import TrainTransform, timm_options, train_transform
from illama.data.decode.lazy_image import Box, DecodedPicture, ResizedCrop, resize
from illama.data.rng import Purpose, global_seed, reseed
from illama.optional import import_timm
from illama.recipes import load_recipe

PHOTO = Image.fromarray(load_sample_image("china.jpg"))  # 640 x 427
FILL = (124, 116, 104)


@pytest.mark.parametrize("sides", [(640, 427), (300, 300), (50, 400), (400, 50), (7, 5)])
def test_crops_are_drawn_as_timm_draws_them(sides: tuple[int, int]) -> None:
    import_timm()
    from timm.data.transforms import RandomResizedCropAndInterpolation

    image = PHOTO.resize(sides)
    for scale in ((0.08, 1.0), (0.5, 0.6), (0.9, 1.0)):
        theirs = RandomResizedCropAndInterpolation(224, scale=scale)
        ours = ResizedCrop((224, 224), scale)
        with global_seed(Purpose.SAMPLE, 1, *sides):
            random.seed(3)
            expected = [theirs.get_params(image, theirs.scale, theirs.ratio) for _ in range(50)]
            random.seed(3)
            drawn = [ours.draw(*sides) for _ in range(50)]
        assert [(box.top, box.left, box.height, box.width) for box in drawn] == expected


@pytest.mark.parametrize("sides", [(1, 1), (1, 500), (4000, 3), (2, 2)])
def test_every_crop_lies_within_the_image(sides: tuple[int, int]) -> None:
    crop = ResizedCrop((8, 8))
    for _ in range(200):
        box = crop.draw(*sides)
        assert box.width >= 1
        assert box.height >= 1
        assert 0 <= box.left <= sides[0] - box.width
        assert 0 <= box.top <= sides[1] - box.height


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (427, 640), (600, 500)])
def test_resizing_equals_pillow_to_two_levels(size: tuple[int, int]) -> None:
    for box in (Box(0, 0, 640, 427), Box(31, 17, 333, 401), Box(200, 100, 40, 30)):
        cut = PHOTO.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        theirs = np.asarray(cut.resize(size[::-1], Image.Resampling.BICUBIC), np.int32)
        ours = resize(np.array(PHOTO)[box.top : box.top + box.height, box.left : box.left + box.width], size)
        assert ours.shape == (3, *size)
        assert ours.is_contiguous(memory_format=torch.preserve_format) or ours.stride()[0] == 1
        off = np.abs(ours.permute(1, 2, 0).numpy().astype(np.int32) - theirs)
        assert off.max() <= 2
        assert (off > 0).mean() < 0.01


def test_resizing_to_the_same_size_is_a_copy() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    same = resize(pixels, (5, 6))
    assert np.array_equal(same.permute(1, 2, 0).numpy(), pixels)
    same.zero_()
    assert pixels.any()


def _timm(name: str):
    import_timm()
    from timm.data import auto_augment

    return getattr(auto_augment, {"translate_x": "translate_x_rel", "translate_y": "translate_y_rel"}.get(name, name))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y"])
def test_slides_equal_pillow_to_one_level(name: str, mode: str) -> None:
    image = PHOTO.resize((120, 90)).convert(mode)
    fill = FILL[: len(image.getbands())]
    for argument in (-0.45, -0.3, -0.171, 0.0, 1e-6, 0.05, 0.25, 0.3, 0.45, 1.5, -2.0):
        theirs = _timm(name)(image, argument, fillcolor=fill, resample=Image.Resampling.BICUBIC)
        ours = getattr(image_ops, name)(image, argument, fillcolor=fill, resample=Image.Resampling.BICUBIC)
        assert (ours.mode, ours.size) == (mode, image.size)
        off = np.abs(np.asarray(ours, np.int32) - np.asarray(theirs, np.int32))
        assert off.max() <= 1, argument
        assert argument == 1e-6 or (off > 0).mean() < 0.06, argument  # weights of 1e-6 decide which whole level


def _recipe(*overrides: str):
    return load_recipe("imagenet1k_tiny", ["model.img_size=64", *overrides])


def test_randaugment_is_timms_to_one_level() -> None:
    """One operation for certain: timm's object with the same random numbers gives the same picture."""
    import_timm()
    from timm.data import create_transform

    recipe = _recipe("augment.randaugment=rand-m9-mstd0.5-inc1-n1-p1", "augment.hflip=0")
    ours = train_transform(recipe, "resized")
    theirs = create_transform((3, 64, 64), is_training=True, separate=True, **timm_options(recipe))[1].transforms
    assert [type(operation).__name__ for operation in ours.operations] == ["RandAugment"]
    small = PHOTO.resize((64, 64))
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    replaced = {op.name for op in ours.operations[0].ops if op.aug_fn.__module__ == image_ops.__name__}
    assert replaced == {"ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
    for seed in range(150):
        with global_seed(Purpose.SAMPLE, seed):
            reseed(Purpose.SAMPLE, seed)
            mine = ours.finish(pixels)
            reseed(Purpose.SAMPLE, seed)
            expected = np.asarray(theirs[0](small), np.int32)
        assert np.abs(mine.permute(1, 2, 0).numpy().astype(np.int32) - expected).max() <= 1, seed


def test_flip_mirrors_as_often_as_asked() -> None:
    pixels = torch.from_numpy(np.array(PHOTO.resize((16, 16)))).permute(2, 0, 1)
    transform = TrainTransform((3, 16, 16), lambda picture: pixels, hflip=0.3)
    with global_seed(Purpose.SAMPLE, 0):
        made = [transform(DecodedPicture(PHOTO)) for _ in range(400)]
    flipped = [torch.equal(image, pixels.flip(-1)) for image in made]
    assert all(torch.equal(image, pixels) for image, turned in zip(made, flipped, strict=True) if not turned)
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.07)


def test_a_device_leaves_the_crop_only_to_the_workers() -> None:
    recipe = _recipe("augment.rotate=10")
    assert train_transform(recipe, "resized", on_device=True).operations == ()
    assert train_transform(recipe, "resized", on_device=True).hflip == 0
    assert len(train_transform(recipe, "resized").operations) == 2
    assert train_transform(recipe, "resized").hflip == 0.5
    jitter = train_transform(_recipe("augment.randaugment=null", "augment.color_jitter=0.4"), "resized")
    assert [type(operation).__name__ for operation in jitter.operations] == ["ColorJitter"]
    plain = train_transform(_recipe("augment.randaugment=null"), "resized")
    assert plain.operations == ()


@pytest.mark.parametrize("crop", ["resized", "pad", "none"])
@pytest.mark.parametrize("channels", [3, 1])
def test_shapes(crop: str, channels: int) -> None:
    ones = ["model.in_chans=1", "data.mean=[0.5]", "data.std=[0.2]"] if channels == 1 else []
    transform = train_transform(_recipe("model.img_size=[48,64]", "augment.rotate=5", *ones), crop)
    picture = DecodedPicture(PHOTO.convert("L") if channels == 1 else PHOTO)
    with global_seed(Purpose.SAMPLE, 0):
        for _ in range(10):
            made = transform(picture)
            assert made.dtype == torch.uint8
            assert tuple(made.shape) == transform.shape == (channels, 48, 64)
