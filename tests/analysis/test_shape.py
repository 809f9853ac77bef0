"""Shape bias: which pictures are taken, what is decided on them, and what is said of it."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from illama.analysis.registry import ShapeOptions
from illama.analysis.shape import category_probabilities, decisions, draw, open_cue_conflict, shape, shape_bias, why_not
from illama.data.imagenet import categories16, names, wnids
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.report import Table
from tests.analysis.imagenet_head import ColourHead, picture, subject_of

# File -> what the network is to see in it.
DECISIONS = {
    "cat/cat1-dog1.png": "cat",
    "cat/cat2-dog2.png": "dog",
    "cat/cat3-oven1.png": "cat",
    "cat/cat4-oven2.png": "cat",
    "cat/cat5-cat1.png": "cat",  # no conflict
    "dog/dog1-cat1.png": "cat",
    "dog/dog2-knife1.png": "boat",
    "knife/knife1-oven1.png": "bird",
    "oven/oven1-oven2.png": "bird",  # no conflict
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for number, (file, category) in enumerate(DECISIONS.items()):
        own = categories16()[category]
        picture(tmp_path / "set" / file, own[number % len(own)])
    return tmp_path / "set"


def test_known_decisions_give_the_exact_table(pictures: Path) -> None:
    subject = subject_of(open_cue_conflict(pictures))
    found = shape(subject, ShapeOptions(cue_conflict=str(pictures)))
    expected = {name: {"shape": 0, "texture": 0, "other": 0, "shape_bias": None} for name in categories16()}
    expected["cat"] = {"shape": 3, "texture": 1, "other": 0, "shape_bias": 0.75}
    expected["dog"] = {"shape": 0, "texture": 1, "other": 1, "shape_bias": 0.0}
    expected["knife"] = {"shape": 0, "texture": 0, "other": 1, "shape_bias": None}
    assert found.values["by_category"] == expected
    assert found.values["shape_bias"] == 3 / 5
    assert (found.values["shape_accuracy"], found.values["texture_accuracy"]) == (3 / 7, 2 / 7)
    assert (found.values["images_with_conflict"], found.values["images_without_conflict"]) == (7, 2)
    table = next(block for block in found.section.blocks if isinstance(block, Table))
    cells = {row[0]: row[1:] for row in table.rows}
    assert cells["cat"] == ("3", "1", "0", "75.0 %")
    assert cells["dog"] == ("0", "1", "1", "0.0 %")
    assert cells["knife"] == ("0", "0", "1", "none decided")
    assert cells["all"] == ("3", "2", "2", "60.0 %")
    assert found.tables["shape_bias.csv"].splitlines()[8] == "cat,3,1,0,0.75"
    assert found.summary[0].value.startswith("60.00 % (3 shape and 2 texture decisions; 95 % interval 23.1 to 88.2)")
    assert found.summary[0].published == "41.45 % (iLLaMA-B, ImageNet-1K)"
    assert found.json()


def test_an_unreadable_picture_is_counted(pictures: Path) -> None:
    (pictures / "cat" / "cat0-knife2.png").write_bytes(b"no picture")  # before all others, whose places stay theirs
    found = shape(subject_of(open_cue_conflict(pictures)), ShapeOptions(cue_conflict=str(pictures)))
    assert found.values["skipped"] == 1
    assert found.values["images_with_conflict"] == 7
    assert found.values["by_category"]["cat"]["shape_bias"] == 0.75


def test_other_heads_are_refused(pictures: Path) -> None:
    source, options = open_cue_conflict(pictures), ShapeOptions(cue_conflict=str(pictures))
    for classes in ((), wnids(), names()):
        assert why_not(subject_of(source, classes=classes), options) is None
    assert "--cue-conflict FOLDER" in str(why_not(subject_of(source), ShapeOptions()))
    ten = ModelConfig(img_size=8, patch_size=4, num_classes=10, embed_dim=8, depth=1, num_heads=2)
    cifar = subject_of(source, classes=tuple("abcdefghij"), config=ten)
    assert "10 classes (a, b, c, ...)" in str(why_not(cifar, options))
    with pytest.raises(UserError, match="shape bias cannot be measured: the network tells 10 classes"):
        shape(cifar, options)
    assert "1000 classes" in str(why_not(subject_of(source, classes=wnids()[::-1]), options))


def test_answers_that_are_no_numbers_are_refused(pictures: Path) -> None:
    class Diverged(ColourHead):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * float("nan")

    with pytest.raises(UserError, match="the logits of 9 of 9 images are not finite"):
        shape(subject_of(open_cue_conflict(pictures), Diverged()), ShapeOptions(cue_conflict=str(pictures)))


def test_the_160_real_pictures_run_to_the_end(shared_data: Path) -> None:
    config = ModelConfig(img_size=32, patch_size=16, num_classes=1000, embed_dim=16, depth=1, num_heads=2)
    torch.manual_seed(0)
    model = ILlama(config)
    torch.nn.init.normal_(model.head.weight)
    folder = shared_data / "cue_conflict"
    found = shape(subject_of(open_cue_conflict(folder), model, config=config), ShapeOptions(cue_conflict=str(folder)))
    assert (found.values["images_with_conflict"], found.values["images_without_conflict"]) == (144, 16)
    counted = found.values["by_category"].values()
    assert all(own["shape"] + own["texture"] + own["other"] == 9 for own in counted)
    assert 0 <= found.values["shape_bias"] <= 1


def test_the_picture_shows_every_network_and_only_so_many_as_can_be_told_apart() -> None:
    every = torch.arange(16)
    for_shape = shape_bias(every, every, every.roll(1))
    for_texture = shape_bias(every.roll(1), every, every.roll(1))
    one, two = draw({"a": for_shape}), draw({"a": for_shape, "b": for_texture})
    ElementTree.fromstring(two)
    assert len(two) > len(one)
    with pytest.raises(ValueError, match="1 to 6 networks; got 7"):
        draw(dict.fromkeys("abcdefg", for_shape))


NAMES = list(categories16())


def _numbers(*names: str) -> torch.Tensor:
    return torch.tensor([NAMES.index(name) for name in names])


def test_a_category_is_the_mean_of_its_classes_in_numpy_too() -> None:
    logits = torch.randn(7, 1000, generator=torch.Generator().manual_seed(0))
    odds = np.exp(logits.numpy().astype(np.float64))
    probabilities = odds / odds.sum(axis=1, keepdims=True)
    expected = np.stack([np.take(probabilities, own, axis=1).mean(axis=1) for own in categories16().values()], axis=1)
    found = category_probabilities(logits)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert decisions(logits).tolist() == expected.argmax(axis=1).tolist()


def test_a_sum_would_decide_otherwise() -> None:
    """A little of each of the 109 dogs is more than the one knife in sum, and less on average."""
    logits = torch.zeros(1, 1000)
    logits[0, list(categories16()["dog"])] = 1.0
    logits[0, list(categories16()["knife"])] = 3.0
    in_sum = {name: logits.softmax(1)[0, list(own)].sum() for name, own in categories16().items()}
    assert max(in_sum, key=lambda name: float(in_sum[name])) == "dog"
    assert NAMES[int(decisions(logits))] == "knife"


def test_counts_by_hand() -> None:
    #        shape    texture other    shape    no conflict
    shapes = _numbers("cat", "cat", "cat", "dog", "dog")
    textures = _numbers("dog", "dog", "oven", "cat", "dog")
    found = shape_bias(_numbers("cat", "dog", "bear", "dog", "dog"), shapes, textures)
    cat, dog, bear = (NAMES.index(name) for name in ("cat", "dog", "bear"))
    assert (found.shape[cat], found.texture[cat], found.other[cat]) == (1, 1, 1)
    assert (found.shape[dog], found.texture[dog], found.other[dog]) == (1, 0, 0)
    assert found.by_category[cat] == 0.5
    assert found.by_category[dog] == 1.0
    assert found.by_category[bear] is None
    assert (found.images, found.decided, found.without_conflict) == (4, 3, 1)
    assert found.bias == 2 / 3
    assert (found.shape_accuracy, found.texture_accuracy) == (0.5, 0.25)


def test_without_a_conflict_or_a_decision_there_is_no_bias() -> None:
    with pytest.raises(UserError, match="none of the 2 images shows one category in the texture of another"):
        shape_bias(_numbers("cat", "dog"), _numbers("cat", "dog"), _numbers("cat", "dog"))
    with pytest.raises(UserError, match="on none of the 1 images with a conflict"):
        shape_bias(_numbers("bear", "cat"), _numbers("cat", "cat"), _numbers("dog", "cat"))
