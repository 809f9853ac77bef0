"""Files of tensors with a description: read back as they were, and whatever is no such file is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.torch import save_file

from illama.errors import UserError
from illama.evaluation import SavedLogits
from illama.evaluation.cache import TensorFile
from illama.evaluation.features import Features
from illama.system import files


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


def some_features(images: int = 12, **edits: Any) -> Features:
    parts: dict[str, Any] = {
        "values": torch.randn(images, 3),
        "labels": torch.arange(images) % 2,
        "positions": torch.arange(images),
        "classes": ("a", "ä"),
        "block": 1,
        "tokens": "mean",
        "identity": {"network": "1234", "block": 1},
        "weights": "model.safetensors, step 7",
        "data": "some images",
        "skipped": {"bad \n.jpg": "cut off"},
    }
    return Features(**(parts | edits))


MAKERS = {"logits": some_logits, "features": some_features}
every_kind = pytest.mark.parametrize("kind", MAKERS)


def same(one: TensorFile, other: TensorFile) -> bool:
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one)]
    return all(type(a) is type(b) and np.array_equal(a, b) for a, b in pairs)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file.safetensors"


def parts_of(saved: TensorFile, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    saved.save(path)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()[saved.KEY])  # noqa: SIM118


def refused(kind: type[TensorFile], path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        kind.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@every_kind
def test_a_file_reads_back_the_same_and_equal_ones_are_equal_files(kind: str, path: Path) -> None:
    saved, second = MAKERS[kind](), path.with_name("second.safetensors")
    saved.save(path)
    saved.save(second)
    assert same(type(saved).load(path), saved)
    assert path.read_bytes() == second.read_bytes()
    assert {file.name for file in path.parent.iterdir()} == {path.name, second.name}
    assert saved.is_one(path)
    assert all(np.array_equal(array, getattr(saved, name)) for name, array in load_file(path).items()), "other tools"


@every_kind
def test_what_is_no_such_file_is_refused(kind: str, path: Path, digits_run: Path) -> None:
    saved = MAKERS[kind]()
    saved.save(path)
    content = path.read_bytes()
    for damage in (content[:-5], content[:20], b"", b"no tensors at all"):
        path.write_bytes(damage)
        refused(type(saved), path, "is not a readable safetensors file")
        assert not saved.is_one(path)
    weights = next(digits_run.rglob("model.safetensors"))
    refused(type(saved), weights, f"holds no {kind}: .*make it" + (" with illama eval" if kind == "logits" else ""))
    refused(type(saved), path.with_name("absent.safetensors"), f"there is no file of {kind}")
    assert not saved.is_one(weights)
    assert not saved.is_one(path.parent)


@every_kind
@pytest.mark.parametrize("header", ["{}", "[]", "no json", '{"format_version": 1}', '{"format_version": 99}'])
def test_another_header_is_refused(kind: str, path: Path, header: str) -> None:
    saved = MAKERS[kind]()
    tensors, _ = parts_of(saved, path)
    save_file(tensors, path, metadata={saved.KEY: header})
    other = f"not describe {kind}|of another version of illama"
    if "99" in header and kind == "logits":
        other = "update illama"
    refused(type(saved), path, "header is damaged" if header == "no json" else other)


@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        *((kind, {"classes": value}) for kind in MAKERS for value in ("abcd", [["a"], "b"], [1, 2], None)),
        *((kind, edit) for kind in MAKERS for edit in ({"data": 3}, {"data": ["d"]}, {"weights": None}, {"more": 1})),
        *((kind, {"skipped": value}) for kind in MAKERS for value in ([["a", "b"]], {"a": 1}, {"a": None})),
        *(("logits", {"softness": value}) for value in ("x", -1, 1e300, True)),
        ("logits", {"network_id": None}),
        *(("features", edit) for edit in ({"block": "x"}, {"block": 1.5}, {"tokens": "all"}, {"identity": []})),
    ],
)
def test_fields_of_another_kind_are_refused(kind: str, path: Path, edit: dict[str, Any]) -> None:
    saved = MAKERS[kind]()
    tensors, about = parts_of(saved, path)
    save_file(tensors, path, metadata={saved.KEY: json.dumps(about)})
    assert same(type(saved).load(path), saved)
    save_file(tensors, path, metadata={saved.KEY: json.dumps(about | edit)})
    refused(type(saved), path, "does not describe logits|another version of illama")


@pytest.mark.parametrize("name", Features.ARRAYS)
def test_features_of_another_kind_are_refused(path: Path, name: str) -> None:
    tensors, about = parts_of(some_features(), path)
    whole = tensors[name]
    for other in (whole.double(), whole[None], whole.flatten()[0], whole.half()):
        save_file(tensors | {name: other.contiguous()}, path, metadata={Features.KEY: json.dumps(about)})
        refused(Features, path, "another version of illama")
    save_file(tensors | {name: whole[:-1]}, path, metadata={Features.KEY: json.dumps(about)})
    refused(Features, path, "of different numbers of images")


@every_kind
def test_names_that_are_no_text_can_be_saved(kind: str, path: Path) -> None:
    strange = os.fsdecode(b"gr\xfc\xdf.png")
    saved = MAKERS[kind](skipped={strange: "cut off"}, data=strange)
    saved.save(path)
    assert same(type(saved).load(path), saved)


@every_kind
def test_a_full_disk_leaves_the_former_file(kind: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = MAKERS[kind]()
    former.save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "to_disk", full)
    with pytest.raises(UserError, match="No space left on device"):
        MAKERS[kind](images=5).save(path)
    assert same(type(former).load(path), former)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with pytest.raises(UserError, match="cannot write"):
        former.save(path.parent / "absent" / "f.safetensors")
