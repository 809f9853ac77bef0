"""Robustness sets from folders on disk: a head with known answers gives the exact rows."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
import torch

from illama.analysis import imagenet_answers
from illama.analysis.registry import RobustnessOptions
from illama.analysis.robustness import MEMORY_FILE, robustness, why_not
from illama.analysis.robustness.measures import CORRUPTIONS, COUNTED, SEVERITIES, VALIDATION_IMAGES
from illama.data import Source
from illama.data.imagenet import subset, wnids
from illama.data.layout import open_source
from illama.errors import UserError
from illama.models import ILlama, ModelConfig
from illama.recipes import DataConfig
from illama.report import Figure
from tests.analysis.imagenet_head import picture, subject_of


@pytest.fixture
def other(tmp_path: Path) -> Source:
    """Images of classes that are not ImageNet's."""
    picture(tmp_path / "other" / "cats" / "x.png", 0)
    return open_source(DataConfig(name="folder", path=str(tmp_path / "other")), "auto")


@pytest.fixture
def validation(tmp_path: Path) -> Path:
    """Three images of class 3 and one of class 4, of which the network gets two right, after one without a picture."""
    for number, (own, answer) in enumerate(((3, 3), (3, 7), (3, 3), (4, 3)), start=1):
        picture(tmp_path / "val" / wnids()[own] / f"ILSVRC2012_val_{number:08d}.JPEG", answer)
    broken = tmp_path / "val" / wnids()[2] / "ILSVRC2012_val_00000005.JPEG"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    return tmp_path / "val"


def _rows(found: object) -> dict[str, dict[str, object]]:
    return {row["title"]: row for row in found.values["sets"]}  # type: ignore[attr-defined]


def test_rows_of_the_sets_are_exact(tmp_path: Path, other: Source, validation: Path) -> None:
    outside = next(number for number in range(1000) if number not in subset("imagenet-r"))
    competing = next(number for number in subset("imagenet-r") if number % 10 == 0)
    # The network says a class outside of ImageNet-R, and the right one of ImageNet-R second.
    picture(tmp_path / "r" / wnids()[competing] / "1.png", outside, second=competing)
    picture(tmp_path / "r" / wnids()[subset("imagenet-r")[1]] / "1.png", outside, second=competing)
    for name, answer in (("2", 2), ("10", 10), ("100", 3)):
        picture(tmp_path / "v2" / name / "x.png", answer)
    labels: list[list[int]] = [[] for _ in range(VALIDATION_IMAGES)]
    labels[0], labels[1], labels[3] = [5], [1, 7], [3]  # the third image has none
    (tmp_path / "real.json").write_text(json.dumps(labels))
    options = RobustnessOptions(
        imagenet=str(validation),
        imagenet_v2=str(tmp_path / "v2"),
        imagenet_r=str(tmp_path / "r"),
        real=str(tmp_path / "real.json"),
    )
    found = robustness(subject_of(other), options)
    rows = _rows(found)
    assert list(rows) == ["ImageNet", "ImageNet-ReaL", "ImageNet-V2", "ImageNet-R"]
    assert [row["skipped"] for row in rows.values()] == [1, 1, 0, 0]
    keys = ("hits", "images", "full_images", "classes", "full_classes")
    assert [rows["ImageNet"][key] for key in keys] == [2, 4, 50_000, 2, 1000]
    assert [rows["ImageNet-ReaL"][key] for key in keys] == [2, 3, 3, 2, 1000]
    assert [rows["ImageNet-V2"][key] for key in keys] == [2, 3, 10_000, 3, 1000]
    assert [rows["ImageNet-R"][key] for key in keys] == [1, 2, 30_000, 2, 200]
    assert rows["ImageNet"]["top1"] == 50.0
    assert "without any are left out (1)" in str(rows["ImageNet-ReaL"]["note"])
    assert found.summary[0].value.endswith("; 4 of 50,000 images)")
    table = list(csv.DictReader(found.tables["robustness.csv"].splitlines()))
    assert [row["title"] for row in table] == list(rows)
    assert float(table[3]["top1"]) == 50.0
    assert found.json()


def test_the_datas_own_images_are_the_reference_where_they_are_imagenets(tmp_path: Path, validation: Path) -> None:
    picture(tmp_path / "sketch" / wnids()[9] / "x.png", 9)
    subject = subject_of(open_source(DataConfig(name="folder", path=str(validation)), "auto"))
    rows = _rows(robustness(subject, RobustnessOptions(imagenet_sketch=str(tmp_path / "sketch"))))
    assert [rows["given images"][key] for key in ("hits", "images", "full_images")] == [2, 4, None]
    assert rows["ImageNet-Sketch"]["top1"] == 100.0


def test_corruptions_are_averaged_as_published(tmp_path: Path, other: Source) -> None:
    """Every set has four images; severity s gets 4 - min(s, 4) of them right, the extra corruption none."""
    for name in (*COUNTED, "spatter"):
        for severity in SEVERITIES:
            for image in range(4):
                right = name != "spatter" and image >= severity
                picture(tmp_path / "c" / name / str(severity) / wnids()[8] / f"{image}.JPEG", 8 if right else 9)
    found = robustness(subject_of(other), RobustnessOptions(imagenet_c=str(tmp_path / "c")))
    values = found.values["imagenet_c"]
    assert values["errors"]["fog"] == {"1": 0.25, "2": 0.5, "3": 0.75, "4": 1.0, "5": 1.0}
    assert set(values["errors"]["spatter"].values()) == {1.0}
    assert (values["sets"], values["images"], values["mean_error"]) == (75, 4 * 80, 0.7)
    by_hand = sum(0.7 / (CORRUPTIONS[name].alexnet or 0) for name in COUNTED) / 15
    assert values["mean_corruption_error"] == pytest.approx(by_hand, rel=1e-12)
    assert [measure.name for measure in found.summary] == [
        "ImageNet-C, mean error",
        "ImageNet-C, error relative to AlexNet's (mCE)",
    ]
    assert len(found.tables["imagenet_c.csv"].splitlines()) == 1 + 80


def test_a_part_of_imagenet_c_has_no_mean_corruption_error_and_says_so(tmp_path: Path, other: Source) -> None:
    picture(tmp_path / "c" / "fog" / "3" / wnids()[8] / "x.JPEG", 8)
    found = robustness(subject_of(other), RobustnessOptions(imagenet_c=str(tmp_path / "c")))
    assert found.values["imagenet_c"]["mean_corruption_error"] is None
    assert [measure.value for measure in found.summary] == ["0.00 % (1 of 75 corrupted sets)"]


def test_corrupted_images_are_shown_as_they_are(tmp_path: Path, other: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are cropped already: the transform that crops other sets' images must not crop them again."""
    modes = []
    collect = imagenet_answers.collect_logits

    def watched(model, loader, **how):  # type: ignore[no-untyped-def]
        modes.append(loader.transform.mode)
        return collect(model, loader, **how)

    monkeypatch.setattr(imagenet_answers, "collect_logits", watched)
    picture(tmp_path / "c" / "fog" / "3" / wnids()[8] / "x.JPEG", 8)
    picture(tmp_path / "s" / wnids()[8] / "x.JPEG", 8)
    subject = subject_of(other)
    subject = dataclasses.replace(subject, transform=dataclasses.replace(subject.transform, mode="warp"))
    robustness(subject, RobustnessOptions(imagenet_c=str(tmp_path / "c"), imagenet_sketch=str(tmp_path / "s")))
    assert modes == ["warp", "none"]


def test_a_second_call_makes_no_pass_and_other_weights_make_one(tmp_path: Path, validation: Path) -> None:
    config = ModelConfig(img_size=8, patch_size=4, num_classes=1000, embed_dim=8, depth=1, num_heads=2)
    model, passes = ILlama(config), []
    model.register_forward_hook(lambda *_: passes.append(1))
    picture(tmp_path / "s" / wnids()[8] / "x.png", 8)
    subject = subject_of(open_source(DataConfig(name="folder", path=str(validation)), "auto"), model, config=config)
    options = RobustnessOptions(imagenet_sketch=str(tmp_path / "s"))
    first = robustness(subject, options, tmp_path / "kept" / "here")
    assert len(passes) == 2
    assert robustness(subject, options, tmp_path / "kept" / "here").values == first.values
    assert len(passes) == 2
    with torch.no_grad():
        model.head.bias[0] += 1
    robustness(subject, options, tmp_path / "kept" / "here")
    assert len(passes) == 4
    for damaged in ("{", "[1]"):
        (tmp_path / "kept" / "here" / MEMORY_FILE).write_text(f"{damaged}\n")
        with pytest.raises(UserError, match=r"is damaged; delete it|belongs to another"):
            robustness(subject, options, tmp_path / "kept" / "here")


def test_what_cannot_be_measured_is_one_line(tmp_path: Path, other: Source) -> None:
    subject = subject_of(other)
    assert "no robustness set is given" in str(why_not(subject, RobustnessOptions()))
    some = RobustnessOptions(imagenet_a=str(tmp_path))
    assert why_not(subject, some) is None
    ten = ModelConfig(img_size=8, patch_size=4, num_classes=10, embed_dim=8, depth=1, num_heads=2)
    assert "10 classes" in str(why_not(subject_of(other, config=ten), some))
    assert "add --imagenet FOLDER" in str(why_not(subject, RobustnessOptions(real="real.json")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no images"):
        robustness(subject, RobustnessOptions(imagenet_a=str(tmp_path / "empty")))


def test_the_125_real_samples_run_to_the_end(shared_data: Path, other: Source) -> None:
    config = ModelConfig(img_size=32, patch_size=16, num_classes=1000, embed_dim=16, depth=1, num_heads=2)
    samples = str(shared_data / "imagenet_samples")
    subject = subject_of(other, ILlama(config), config=config)
    found = robustness(subject, RobustnessOptions(imagenet=samples, imagenet_v2=samples))
    row = _rows(found)["ImageNet"]
    assert [row[key] for key in ("images", "full_images", "classes", "skipped")] == [125, 50_000, 125, 0]
    assert [block.name for block in found.section.blocks if isinstance(block, Figure)] == ["robustness"]
