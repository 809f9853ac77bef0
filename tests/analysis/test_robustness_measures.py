"""Robustness sets: folders become ImageNet's class numbers, and answers are judged as each set's authors do."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from PIL import Image

from illama.analysis.robustness.measures import (
    CORRUPTIONS,
    COUNTED,
    SETS,
    SEVERITIES,
    VALIDATION_IMAGES,
    corruption_error,
    find_corrupted,
    mean_corruption_error,
    open_set,
    read_real,
    score_real,
    scores_among,
    validation_numbers,
)
from illama.data.imagenet import subset, wnids
from illama.errors import UserError


def _folders(root: Path, *names: str, file: str = "x.png") -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(root / name / file, format="PNG")
    return root


def test_the_125_real_samples_get_the_numbers_of_their_classes(shared_data: Path) -> None:
    source = open_set(SETS["imagenet"], shared_data / "imagenet_samples")
    assert source.labels.tolist() == list(range(0, 1000, 8))
    assert all(wnids()[label] == Path(source.location(i)).parent.name for i, label in enumerate(source.labels))
    assert source.classes == wnids()


def test_folders_called_by_number_are_not_sorted_as_text(tmp_path: Path) -> None:
    root = _folders(tmp_path, "0", "1", "2", "10", "100", "999")
    source = open_set(SETS["imagenet_v2"], root)
    by_folder = {Path(source.location(i)).parent.name: int(label) for i, label in enumerate(source.labels)}
    assert by_folder == {name: int(name) for name in ("0", "1", "2", "10", "100", "999")}


def test_an_unknown_class_an_empty_set_and_nested_sets_are_one_line_each(tmp_path: Path) -> None:
    for which, path, words in (
        (SETS["imagenet"], _folders(tmp_path / "a", "n01440764", "cats"), "has a class 'cats' [(]1 such[)]"),
        (SETS["imagenet_v2"], _folders(tmp_path / "b", "3", "1000"), "has a class '1000'"),
        (SETS["imagenet_a"], _folders(tmp_path / "c", wnids()[0]), "n01440764, which is none of ImageNet-A's 200"),
        (SETS["imagenet_v2"], _folders(tmp_path / "d", "x/3", "y/3"), "has a class 'x' [(]2 such[)]"),
        (SETS["imagenet_r"], tmp_path / "none", "is not a folder"),
    ):
        with pytest.raises(UserError, match=words) as refusal:
            open_set(which, path)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 400
    (tmp_path / "e").mkdir()
    with pytest.raises(UserError, match="no images"):
        open_set(SETS["imagenet"], tmp_path / "e")


@pytest.mark.parametrize("name", ["imagenet-a", "imagenet-r"])
def test_among_a_subset_the_others_do_not_compete(name: str) -> None:
    own = subset(name)  # type: ignore[arg-type]
    outside = next(number for number in range(1000) if number not in own)
    logits = torch.zeros(2, 1000)
    logits[0, outside], logits[0, own[7]] = 2.0, 1.0  # right once the class outside is gone
    logits[1, own[3]] = 1.0  # wrong in any case
    targets = torch.tensor([own[7], own[5]])
    assert scores_among(logits, targets, range(1000)).top(1) == 0.0
    assert scores_among(logits, targets, own).top(1) == 50.0


def test_real_labels_by_hand() -> None:
    """One of two labels hit, a miss, an image that has none, the second validation image asked for first."""
    labels = [[1, 2], [], [5], [3]]
    answers = torch.nn.functional.one_hot(torch.tensor([3, 2, 7, 9]), 10).float()
    found = score_real(answers, torch.tensor([4, 1, 2, 3]), labels)
    assert (found.hits, found.images, found.unlabelled) == (2, 3, 1)
    with pytest.raises(UserError, match="none of the 1 validation images has a label"):
        score_real(answers[:1], torch.tensor([2]), labels)


def test_the_packaged_real_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text(
        resources.files("timm.data").joinpath("_info/imagenet_real_labels.json").read_text()
    )
    labels = read_real(tmp_path / "real.json")
    assert len(labels) == VALIDATION_IMAGES
    assert sum(map(bool, labels)) == 46_837  # the number that the labels' authors state
    for bad, words in (([[1]], "is not ImageNet-ReaL's"), ([[1000]] * VALIDATION_IMAGES, "is not ImageNet-ReaL's")):
        (tmp_path / "bad.json").write_text(json.dumps(bad))
        with pytest.raises(UserError, match=words):
            read_real(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON file"):
        read_real(tmp_path / "bad.json")
    with pytest.raises(UserError, match="cannot read"):
        read_real(tmp_path / "none.json")


def test_validation_images_are_known_by_their_file_names(tmp_path: Path) -> None:
    source = open_set(SETS["imagenet"], _folders(tmp_path / "a", wnids()[5], file="ILSVRC2012_val_00000293.JPEG"))
    assert validation_numbers(source).tolist() == [293]
    for number, name in enumerate(("tench.png", "ILSVRC2012_val_00050001.JPEG")):
        source = open_set(SETS["imagenet"], _folders(tmp_path / str(number), wnids()[5], file=name))
        with pytest.raises(UserError, match="is not named like a validation image"):
            validation_numbers(source)


def test_corruption_error_by_hand() -> None:
    """Errors equal to AlexNet's give 1; half of them 0.5; one corruption twice as bad as half raises the mean."""
    half = {name: dict.fromkeys(SEVERITIES, (CORRUPTIONS[name].alexnet or 0) / 2) for name in COUNTED}
    assert mean_corruption_error(half) == pytest.approx(0.5, rel=1e-12)
    uneven = {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4, 5: 0.5}
    assert corruption_error("fog", uneven) == pytest.approx(1.5 / (5 * 0.819324), rel=1e-12)
    raised = half | {"snow": dict.fromkeys(SEVERITIES, 0.866816)}
    assert mean_corruption_error(raised) == pytest.approx((14 * 0.5 + 1) / 15, rel=1e-12)
    assert mean_corruption_error(raised | {"spatter": {1: 1.0}}) == mean_corruption_error(raised)


def test_an_incomplete_set_has_no_mean_corruption_error() -> None:
    whole = {name: dict.fromkeys(SEVERITIES, 0.5) for name in COUNTED}
    assert mean_corruption_error({name: whole[name] for name in COUNTED[1:]}) is None
    assert mean_corruption_error(whole | {"fog": dict.fromkeys(SEVERITIES[1:], 0.5)}) is None
    assert corruption_error("spatter", whole["fog"]) is None


def test_alexnets_error_is_the_mean_over_its_published_severities() -> None:
    for name, errors in {
        "gaussian_noise": (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
        "brightness": (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
        "pixelate": (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    }.items():
        assert CORRUPTIONS[name].alexnet == pytest.approx(sum(errors) / 5, abs=1e-9)
    assert len(COUNTED) == 15
    assert len(CORRUPTIONS) == 19


def test_corrupted_folders_are_found_plain_or_grouped(tmp_path: Path) -> None:
    _folders(tmp_path, "fog/2/n01440764", "noise/gaussian_noise/1/n01440764", "fog/1/n01440764")
    found = find_corrupted(tmp_path)
    assert list(found) == [("gaussian_noise", 1), ("fog", 1), ("fog", 2)]
    assert found["gaussian_noise", 1] == tmp_path / "noise" / "gaussian_noise" / "1"


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("mist/1/n01440764",), "none of ImageNet-C's corruptions"),
        (("fog/6/n01440764",), "is no severity"),
        (("fog",), "no image of ImageNet-C"),
        (("fog/1/n01440764", "weather/fog/1/n01440764"), "fog twice"),
    ],
)
def test_what_is_not_imagenet_c_is_one_line(tmp_path: Path, folders: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        find_corrupted(_folders(tmp_path, *folders))
