"""Logits in a file: the same after reading, made in one pass by any number of processes, reused, refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import illama
from illama.checkpoint import save_weights
from illama.cli.main import main
from illama.errors import UserError
from illama.evaluation import EvalResult, SavedLogits, classify
from illama.evaluation.saved_logits import CACHE_FILE, logits_for, logits_of
from illama.evaluation.scores import percent
from illama.evaluation.subject import Subject, open_subject
from illama.weights import load_model
from tests.evaluation.test_cache import same, some_logits
from tests.processes import in_processes


@pytest.fixture
def subject(digits_run: Path) -> Subject:
    return open_subject(digits_run, device="cpu")


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"targets": np.arange(3)}, "12 rows of logits, 3 targets"),
        ({"targets": np.full(12, 4)}, "class 4, but the network has the classes 0 to 3"),
        ({"targets": np.full(12, -1)}, "class -1"),
        ({"logits": np.zeros((12, 4))}, "float64"),
        ({"logits": np.zeros(12, dtype=np.float32)}, "not images x classes"),
        ({"indices": np.zeros(12, dtype=np.int64)}, "do not rise"),
        ({"classes": tuple("abcde")}, "5 class names for 4 classes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(edits: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        some_logits(**edits)


def test_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="there is no image"):
        some_logits(images=0)


def test_unknown_class_names_are_numbers() -> None:
    assert some_logits(classes=()).class_names == ("0", "1", "2", "3")
    assert some_logits(classes=("a", "b")).class_names == ("a", "b", "2", "3")


def test_an_infinite_logit_is_counted_and_its_image_named() -> None:
    saved = some_logits()
    saved.logits[[3, 5], 1] = np.nan
    with pytest.raises(UserError, match="2 of 12 images are not finite, the first of image 6 "):
        saved.answers()


def test_evaluation_saves_the_logits_of_its_own_pass(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = _count_passes(monkeypatch)
    path = tmp_path / "logits.safetensors"
    result = illama.evaluate(digits_run, device="cpu", save_logits=path)
    saved = SavedLogits.load(path)
    assert len(passes) == 1
    assert result == dataclasses.replace(illama.evaluate(digits_run, device="cpu"), images_per_s=result.images_per_s)
    answers = saved.answers()
    assert percent(answers.ranks < 1) == pytest.approx(result.top1, abs=1e-9)
    assert answers.losses.mean() == pytest.approx(result.loss, rel=1e-6)
    assert (saved.classes, saved.data, saved.weights) == (result.classes, result.data, result.weights)
    assert saved.softness == result.softness == 0.5
    assert saved.indices.tolist() == list(range(360))


def saved_by(run: Path, path: Path) -> EvalResult:
    return illama.evaluate(run, device="cpu", batch_size=100, save_logits=path)


def test_several_processes_find_and_save_what_one_does(digits_run: Path, tmp_path: Path) -> None:
    one_result = saved_by(digits_run, tmp_path / "one.safetensors")
    for result in in_processes(3, saved_by, digits_run, tmp_path / "three.safetensors"):
        assert (result.top1, result.count) == (one_result.top1, 360)
        assert result.loss == pytest.approx(one_result.loss, rel=1e-6)
    one, three = (SavedLogits.load(tmp_path / f"{name}.safetensors") for name in ("one", "three"))
    assert one.logits == pytest.approx(three.logits, rel=1e-4, abs=1e-5)  # batches of other sizes round otherwise
    assert same(dataclasses.replace(three, logits=one.logits), one)


def test_the_target_is_checked_before_the_work(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = _count_passes(monkeypatch)
    for name, words in (("logits.npz", "has to end in .safetensors"), ("no/such/a.safetensors", "there is no folder")):
        with pytest.raises(UserError, match=words):
            illama.evaluate(digits_run, device="cpu", save_logits=tmp_path / name)
    assert passes == []


def test_the_command_saves(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "logits.safetensors"
    main(["eval", str(digits_run), "--device", "cpu", "--save-logits", str(path), "--json", str(tmp_path / "a.json")])
    top1 = json.loads((tmp_path / "a.json").read_text())["top1"]
    assert percent(SavedLogits.load(path).answers().hits) == pytest.approx(top1, abs=1e-9)
    assert "top-1" in capsys.readouterr().out
    assert main(["eval", str(digits_run), "--save-logits", str(tmp_path / "logits")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_logits_in_a_workspace_are_used_again(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = _count_passes(monkeypatch)
    folder = tmp_path / "new" / "cache"
    first = logits_for(subject, folder)
    assert same(logits_for(subject, folder), first)
    assert len(passes) == 1
    logits_for(subject, None)
    assert len(passes) == 2


@pytest.mark.parametrize("change", ["weights", "softness", "data", "transform"])
def test_logits_of_something_else_are_not_used(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    first = logits_for(subject, tmp_path)
    passes = _count_passes(monkeypatch)
    if change == "weights":
        subject.model.head.weight.data[0, 0] += 1
    elif change == "softness":
        subject.model.set_softness(0.75)
    elif change == "data":
        subject = subject.other_split("train")
    else:
        subject = dataclasses.replace(subject, transform=dataclasses.replace(subject.transform, mean=(0.1,)))
    second = logits_for(subject, tmp_path)
    assert len(passes) == 1
    assert not np.array_equal(first.logits, second.logits)
    assert same(SavedLogits.load(tmp_path / CACHE_FILE), second)


def test_the_same_data_elsewhere_has_the_same_name(digits_run: Path, tmp_path: Path) -> None:
    ids = []
    for place in ("a", "b"):
        for name in ("3", "7"):
            (tmp_path / place / name).mkdir(parents=True)
            Image.new("L", (8, 8), 99).save(tmp_path / place / name / f"{name}.png")
        ids.append(logits_of(open_subject(digits_run, data=str(tmp_path / place), device="cpu")).data_id)
    assert ids[0] == ids[1]


def test_unreadable_images_are_counted_and_leave_gaps(digits_run: Path, tmp_path: Path) -> None:
    for name in ("3", "7"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(tmp_path / "data" / name / "a.png")
    (tmp_path / "data" / "3" / "b.png").write_bytes(b"cut off")
    saved = logits_of(open_subject(digits_run, data=str(tmp_path / "data"), device="cpu"))
    assert saved.indices.tolist() == [0, 2]
    assert [Path(place).name for place in saved.skipped] == ["b.png"]
    for path in (tmp_path / "data").rglob("a.png"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="no image can be read"):
        logits_of(open_subject(digits_run, data=str(tmp_path / "data"), device="cpu"))


def test_labels_that_are_not_the_networks_are_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="numbered by their own classes"):
        logits_of(open_subject(digits_run, device="cpu", numbering="data"))
    model, meta = load_model(digits_run)
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, model.state_dict(), dataclasses.replace(meta, classes=()))
    for number in range(11):
        (tmp_path / "data" / f"{number:02}").mkdir(parents=True)
        Image.new("L", (8, 8), 99).save(tmp_path / "data" / f"{number:02}" / "a.png")
    with pytest.raises(UserError, match="an image is of class 10, but the network has 10 classes"):
        illama.evaluate(bare, data=str(tmp_path / "data"), device="cpu")
    for number in range(4, 11):
        shutil.rmtree(tmp_path / "data" / f"{number:02}")
    with pytest.raises(UserError, match="it has 4 classes, the network 10, whose names are unknown"):
        illama.evaluate(bare, data=str(tmp_path / "data"), device="cpu")


def test_a_damaged_file_of_the_cache_says_which_to_delete(digits_run: Path, tmp_path: Path) -> None:
    (tmp_path / CACHE_FILE).write_bytes(b"cut off")
    with pytest.raises(UserError, match=rf"{CACHE_FILE} is damaged, or of another version of illama; delete it$"):
        logits_for(open_subject(digits_run, device="cpu"), tmp_path)


def _count_passes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with each pass over a data set."""
    passes: list[None] = []
    genuine = classify.classify_each

    def counted(*arguments: Any, **options: Any) -> list[float]:
        passes.append(None)
        return genuine(*arguments, **options)

    monkeypatch.setattr(classify, "classify_each", counted)
    return passes
