"""What is at a path: one weights file, what stands beside it, or one line that says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from illama.checkpoint import Meta, save_checkpoint
from illama.errors import UserError
from illama.models import ILlama
from illama.weights.load import Place, locate
from illama.weights.published import PUBLISHED


def save(run: Path, tag: str, model: ILlama, meta: Meta) -> Path:
    return save_checkpoint(run, tag, model_state=model.state_dict(), training_state={}, meta=meta)


def test_each_kind_of_path_has_its_file(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    """A run stands for its last checkpoint: the best one is chosen by the evaluation split and would flatter there."""
    row = PUBLISHED["illama_tiny.in1k"]
    (tmp_path / "hub").mkdir()
    for name in (row.file, "hub/config.json", "hub/pytorch_model.bin", "hub/model.pth", "hub/w.pth"):
        (tmp_path / name).touch()
    best, last = (save(tmp_path / "run", tag, model, meta) for tag in ("best", "last"))
    config = tmp_path / "hub" / "config.json"
    expected = {
        tmp_path / "run": Place(last / "model.safetensors", None, None),
        last: Place(last / "model.safetensors", None, None),
        best: Place(best / "model.safetensors", None, None),
        best / "model.safetensors": Place(best / "model.safetensors", None, None),
        tmp_path / row.file: Place(tmp_path / row.file, None, row),
        config.parent: Place(config.with_name("pytorch_model.bin"), config, None),
        config.with_name("model.pth"): Place(config.with_name("model.pth"), config, None),
        config.with_name("w.pth"): Place(config.with_name("w.pth"), None, None),  # config.json describes another file
    }
    assert {path: locate(path) for path in expected} == expected
    assert {path: locate(str(path)) for path in expected} == expected


def test_a_checkpoint_that_was_set_aside_is_found(tmp_path: Path, model: ILlama, meta: Meta) -> None:
    folder = save(tmp_path, "last", model, meta)
    aside = folder.rename(folder.with_name(".last.old"))
    for path in (tmp_path, folder):
        assert locate(path).file == aside / "model.safetensors"


def test_the_folder_one_stands_in(tmp_path: Path, model: ILlama, meta: Meta, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", tmp_path):
        with pytest.raises(UserError, match="neither a run"):
            locate(path)
    folder = save(tmp_path, "last", model, meta)
    assert locate(".").file.samefile(folder / "model.safetensors")
    monkeypatch.chdir(folder)
    assert locate(".").file.samefile(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("a" * 5000, r"^cannot read aaa.*: File name too long$"),
        ("somewhere/illama_tiny.in1k", r"no run, checkpoint or weights file \S+$"),
        ("absent.pth", r"no run, checkpoint or weights file absent\.pth$"),
        ("illama_tyny.in1k", "nor published weights of that name; did you mean illama_tiny.in1k"),
        ("illama_base", "nor published weights of that name; .*illama_base.in1k"),
    ],
)
def test_what_is_not_there_is_one_line(path: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        locate(path)
    assert "\n" not in str(caught.value)
