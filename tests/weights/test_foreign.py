"""Files of other people: read where they are weights, refused in one line where they are not, never run."""

from __future__ import annotations

import argparse
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from illama.errors import UserError
from illama.weights import read_weights

WEIGHTS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.tensor([1.0, 2.0])}
EVERYTHING = {
    "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]},
    "epoch": 299,
    "scaler": {"scale": 1.0},
    "args": argparse.Namespace(lr=4e-3, model="illama_tiny", betas=[0.9, 0.999], resume=None),
}


class Attack:
    """Touches a file as soon as it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def assert_same(path: Path) -> None:
    state, meta = read_weights(path)
    assert meta is None
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_weights(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert len(message.replace(str(path), "")) < 300
    return message


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("ending", [".pth", ".pt", ".bin"])
@pytest.mark.parametrize("key", [None, "model", "state_dict", "model_ema"])
def test_usual_layouts_are_read(tmp_path: Path, zipped: bool, ending: str, key: str | None) -> None:
    content = WEIGHTS if key is None else {**EVERYTHING, key: WEIGHTS}
    torch.save(content, tmp_path / f"w{ending}", _use_new_zipfile_serialization=zipped)
    assert_same(tmp_path / f"w{ending}")


def test_trained_weights_come_before_averaged_ones_and_the_choice_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    averaged = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
    torch.save({"model_ema": averaged, "model": WEIGHTS}, tmp_path / "w.pth")
    with caplog.at_level("INFO", logger="illama"):
        assert_same(tmp_path / "w.pth")
    assert "'model'" in caplog.text
    assert "model_ema" in caplog.text


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_leave_the_names(tmp_path: Path, prefix: str) -> None:
    torch.save({prefix + name: tensor for name, tensor in WEIGHTS.items()}, tmp_path / "w.pth")
    assert_same(tmp_path / "w.pth")


@pytest.mark.parametrize("how", ["zip", "legacy", "protocol 2", "protocol 5"])
@pytest.mark.parametrize("place", ["beside", "inside namespace", "alone"])
def test_an_attack_is_refused_and_does_not_run(tmp_path: Path, how: str, place: str) -> None:
    target = tmp_path / "pwned"
    attack = Attack(target)
    content: Any = {
        "beside": {"model": WEIGHTS, "epoch": attack},
        "inside namespace": {"model": WEIGHTS, "args": argparse.Namespace(lr=attack)},
        "alone": attack,
    }[place]
    path = tmp_path / "w.pth"
    if how.startswith("protocol"):
        if place != "alone":
            content = {"epoch": attack}
        path.write_bytes(pickle.dumps(content, protocol=int(how[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    message = refusal(path)
    assert not target.exists()
    if how in ("zip", "legacy"):
        assert "wants to run posix.system" in message
    pickle.loads(pickle.dumps(attack))  # the attack itself is real
    assert target.exists()


ODD_TENSORS = {
    "sparse": (torch.ones(2, 3).to_sparse(), "head.weight is sparse or nested"),
    "without values": (torch.ones(2, 3, device="meta"), "head.weight is without values"),
    "a bomb": (torch.ones(1).expand(1 << 40), "head.weight is larger than the file"),
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_that_are_no_plain_arrays_are_refused(tmp_path: Path, kind: str) -> None:
    tensor, expected = ODD_TENSORS[kind]
    torch.save(WEIGHTS | {"head.weight": tensor}, tmp_path / "w.pth")
    assert expected in refusal(tmp_path / "w.pth")


def test_repeated_values_and_shared_memory_are_read(tmp_path: Path) -> None:
    row = torch.arange(3.0)
    torch.save({"head.weight": row.expand(2, 3), "again": row}, tmp_path / "w.pth")
    state, _ = read_weights(tmp_path / "w.pth")
    assert torch.equal(state["head.weight"], torch.stack([row, row]))
    assert torch.equal(state["again"], row)


def test_attributes_that_hide_methods_are_left_behind(tmp_path: Path) -> None:
    tensor = torch.nn.Parameter(WEIGHTS["head.weight"])
    tensor.dim = argparse.Namespace()  # type: ignore[method-assign, assignment]
    torch.save(WEIGHTS | {"head.weight": tensor}, tmp_path / "w.pth")
    assert torch.load(tmp_path / "w.pth", weights_only=False)["head.weight"].dim == argparse.Namespace()
    assert read_weights(tmp_path / "w.pth")[0]["head.weight"].dim() == 2


@pytest.mark.parametrize("name", ["a\nillama: all is well", "a\x1b[31m", "a" * 1000])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_names_that_would_write_lines_of_their_own_are_refused(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / f"w{ending}"
    (torch.save if ending == ".pth" else save_file)(WEIGHTS | {name: torch.ones(1)}, path)
    assert refusal(path).isprintable()


def test_a_harmless_class_is_refused_too(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "where": Path("x")}, tmp_path / "w.pth")
    assert "pathlib" in refusal(tmp_path / "w.pth")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not a checkpoint")


def write_tar(path: Path) -> None:
    text = path.with_suffix(".txt")
    text.write_text("not a checkpoint")
    with tarfile.open(path, "w") as archive:
        archive.add(text, "readme.txt")


NOT_CHECKPOINTS = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("Once upon a time there was a llama.\n"),
    "html": lambda path: path.write_text("<!DOCTYPE html>\n<html><body>404</body></html>\n"),
    "png": lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
    "zip": write_zip,
    "tar": write_tar,
    "pickle": lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
    "list": lambda path: torch.save([torch.ones(2)], path),
    "no tensors": lambda path: torch.save({"model": {"lr": 1.0}, "epoch": 3}, path),
    "nothing": lambda path: torch.save({}, path),
}


@pytest.mark.parametrize("kind", NOT_CHECKPOINTS)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, kind: str, ending: str) -> None:
    path = tmp_path / f"w{ending}"
    NOT_CHECKPOINTS[kind](path)
    refusal(path)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_truncation_is_refused(tmp_path: Path, zipped: bool) -> None:
    torch.save({"model": WEIGHTS}, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    content = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(content), 37):
        (tmp_path / "cut.pth").write_bytes(content[:length])
        refusal(tmp_path / "cut.pth")


def test_a_truncated_safetensors_file_is_refused(tmp_path: Path, golden: Path) -> None:
    content = (golden / "micro_rect.safetensors").read_bytes()
    for share in (0.0001, 0.01, 0.5, 0.999):
        (tmp_path / "cut.safetensors").write_bytes(content[: int(share * len(content))])
        refusal(tmp_path / "cut.safetensors")


def test_safetensors_of_others_have_no_description(tmp_path: Path, golden: Path) -> None:
    shutil.copy(golden / "micro_rect.safetensors", tmp_path / "w.safetensors")
    state, meta = read_weights(tmp_path / "w.safetensors")
    assert len(state) > 10
    assert meta is None


def test_missing_and_misnamed_files(tmp_path: Path) -> None:
    assert "no weights file" in refusal(tmp_path / "absent.pth")
    (tmp_path / "w.onnx").write_bytes(b"x")
    assert ".safetensors" in refusal(tmp_path / "w.onnx")
