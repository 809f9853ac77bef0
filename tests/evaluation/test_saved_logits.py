"""Logits in a file: the same after reading, made in one pass by any number of processes, reused, refused."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

import illama
from illama.checkpoint import save_weights
from illama.cli.main import main
from illama.errors import UserError
from illama.evaluation import EvalResult, SavedLogits, classify
from illama.evaluation.calibration import top_k_accuracy
from illama.evaluation.saved_logits import CACHE_FILE, logits_for, logits_of
from illama.evaluation.subject import Subject, open_subject
from illama.system import files
from illama.weights import load_model
from tests.processes import in_processes


def some_logits(images: int = 12, **edits: Any) -> SavedLogits:
    values = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "logits": values.normal(size=(images, 4)).astype(np.float32),
        "targets": values.integers(0, 4, images),
        "indices": np.arange(images) * 2,
        "classes": ("ä", "b c", "", "d"),
        "data": "some images",
        "data_id": "1234",
        "weights": "model.safetensors, step 7",
        "network_id": "5678",
        "softness": 0.25,
        "skipped": {"bad \n.jpg": "cut off"},
    }
    return SavedLogits(**(parts | edits))


def same(one: SavedLogits, other: SavedLogits) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(SavedLogits)]
    return all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def subject(digits_run: Path) -> Subject:
    return open_subject(digits_run, device="cpu")


def test_a_file_reads_back_the_same_and_equal_logits_are_equal_files(tmp_path: Path) -> None:
    saved, first, second = some_logits(), tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    saved.save(first)
    saved.save(second)
    assert same(SavedLogits.load(first), saved)
    assert first.read_bytes() == second.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}
    assert SavedLogits.is_one(first)


def test_what_is_no_file_of_logits_is_refused_in_one_line(tmp_path: Path, digits_run: Path) -> None:
    path = tmp_path / "file.safetensors"
    some_logits().save(path)
    content = path.read_bytes()
    weights = next(digits_run.rglob("model.safetensors"))
    for damage in (content[:-5], content[:20], b"", b"no tensors at all"):
        path.write_bytes(damage)
        _refused(path, "is not a readable safetensors file")
        assert not SavedLogits.is_one(path)
    _refused(weights, "holds no logits: .*make it with illama eval")
    _refused(tmp_path / "absent.safetensors", "there is no file of logits")
    assert not SavedLogits.is_one(weights)
    assert not SavedLogits.is_one(tmp_path)


@pytest.mark.parametrize("header", ["{}", "[]", "no json", '{"format_version": 1}', '{"format_version": 99}'])
def test_another_header_is_refused(tmp_path: Path, header: str) -> None:
    path, saved = tmp_path / "file.safetensors", some_logits()
    arrays = {name: getattr(saved, name) for name in ("logits", "targets", "indices")}
    save_file(arrays, path, metadata={"illama_logits": header})
    words = {"no json": "header is damaged", '{"format_version": 99}': "update illama"}
    _refused(path, words.get(header, "does not describe logits"))


@pytest.mark.parametrize(
    "edit",
    [
        {"classes": "abcd"},
        {"classes": [["a"], "b", "c", "d"]},
        {"classes": None},
        {"data": 3},
        {"weights": ["w"]},
        {"network_id": None},
        {"softness": "x"},
        {"softness": -1},
        {"softness": 1e300},
        {"softness": True},
        {"skipped": [["a", "b"]]},
        {"skipped": {"a": 1}},
        {"more": 1},
    ],
)
def test_fields_of_another_kind_are_refused(tmp_path: Path, edit: dict[str, object]) -> None:
    path, saved = tmp_path / "file.safetensors", some_logits()
    saved.save(path)
    with safe_open(path, framework="np") as file:
        header = json.loads(file.metadata()["illama_logits"])
    arrays = {name: getattr(saved, name) for name in ("logits", "targets", "indices")}
    save_file(arrays, path, metadata={"illama_logits": json.dumps(header)})
    assert same(SavedLogits.load(path), saved)
    save_file(arrays, path, metadata={"illama_logits": json.dumps(header | edit)})
    _refused(path, "does not describe logits")


def _refused(path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        SavedLogits.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


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
    assert top_k_accuracy(answers, 1) == pytest.approx(result.top1, abs=1e-9)
    assert answers.losses.mean() == pytest.approx(result.loss, rel=1e-6)
    assert (saved.classes, saved.data, saved.weights) == (result.classes, result.data, result.weights)
    assert saved.softness == result.softness == 0.5
    assert saved.indices.tolist() == list(range(360))


def saved_by(run: Path, path: Path) -> EvalResult:
    return illama.evaluate(run, device="cpu", batch_size=100, save_logits=path)


def test_several_processes_save_what_one_does(digits_run: Path, tmp_path: Path) -> None:
    found = {}
    for processes in (1, 3):
        path = tmp_path / f"{processes}.safetensors"
        in_processes(processes, saved_by, digits_run, path)
        found[processes] = SavedLogits.load(path)
    one, three = found[1], found[3]
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
    assert top_k_accuracy(SavedLogits.load(path).answers(), 1) == pytest.approx(top1, abs=1e-9)
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


def test_names_that_are_no_text_can_be_saved(tmp_path: Path) -> None:
    strange = os.fsdecode(b"gr\xfc\xdf.png")
    some_logits(skipped={strange: "cut off"}, data=strange).save(tmp_path / "logits.safetensors")
    assert SavedLogits.load(tmp_path / "logits.safetensors").skipped == {strange: "cut off"}


def test_a_full_disk_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "logits.safetensors"
    some_logits().save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "to_disk", full)
    with pytest.raises(UserError, match="No space left on device"):
        some_logits(images=5).save(path)
    assert len(SavedLogits.load(path)) == 12
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def _count_passes(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """A list that grows with each pass over a data set."""
    passes: list[None] = []
    genuine = classify._classify_all

    def counted(*arguments: Any) -> float:
        passes.append(None)
        return genuine(*arguments)

    monkeypatch.setattr(classify, "_classify_all", counted)
    return passes
