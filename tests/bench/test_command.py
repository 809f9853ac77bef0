"""`illama bench` from end to end at a toy size, and its mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from illama.bench import model
from illama.bench.machine import Ceilings
from illama.bench.report import check_folder
from illama.errors import UserError
from tests.cli.conftest import Run, run

__all__ = ["run"]

TOY = ("--img-size", 32, "--batch", 1, 2, "--rounds", 1, "--device", "cpu")


@pytest.fixture(autouse=True)
def _quick(known_ceilings: Ceilings) -> None:
    """No command here measures the machine."""


@pytest.mark.parametrize("what", ["model", "train"])
def test_networks(run: Run, tmp_path: Path, what: str) -> None:
    code, out, err = run("bench", what, *TOY, "--out", tmp_path / "bench")
    assert code == 0, err
    for part in ("tiny, 32 px, batch 2, float32", "timm vit_tiny_patch16_224", "arithmetic alone would give"):
        assert part in out
    assert sorted(path.name for path in (tmp_path / "bench").iterdir()) == [
        f"{what}.{kind}" for kind in ("json", "md", "png")
    ]
    assert f"illama bench {what}" in (tmp_path / "bench" / f"{what}.md").read_text()


def test_json_on_stdout_is_nothing_but_json(run: Run) -> None:
    code, out, _ = run("bench", "model", *TOY, "--precision", "bf16", "--json", "-")
    assert code == 0
    found = json.loads(out)
    assert found["what"] == "illama bench model"
    assert [group["title"] for group in found["groups"]] == ["tiny, 32 px, batch 1, bf16", "tiny, 32 px, batch 2, bf16"]


def test_attention(run: Run, tmp_path: Path) -> None:
    words = ("--shape", "1,1,9,32", "--rounds", 1, "--device", "cpu", "--json", tmp_path / "a.json")
    code, out, err = run("bench", "attention", *words, "--backend", "reference", "--backward")
    assert code == 0, err
    assert "illama reference" in out
    assert json.loads((tmp_path / "a.json").read_text())["groups"][0]["cases"][2]["name"] == "illama reference"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["model", "--model", "tini"], "did you mean tiny?"),
        (["model", "--batch", "0"], '"(0,)" for --batch. Must be >= 1'),
        (["train", "--batch", "4", "-1"], '"(4, -1)" for --batch. Must be >= 1'),
        (["model", "--precision", "fp8"], "precision"),
        (["model", "--softness", "2"], '"2.0" for --softness. Must be <= 1'),
        (["model", "--compile-mode", "reduce-overhead"], "give --compile as well"),
        (["model", "--seconds", "0"], '"0.0" for --seconds. Must be > 0'),
        (["model", "--rounds", "0"], '"0" for --rounds. Must be >= 1'),
        (["model", "--img-size", "33", "--device", "cpu"], "img_size"),
        (["model", "--peer", "no_such:thing", "--device", "cpu", "--img-size", "32"], "cannot be imported"),
        (["model", "--device", "cuda:99"], "device 'cuda:99' cannot be used on this machine"),
        (["attention", "--shape", "1,2,3"], "not four positive numbers"),
        (["attention", "--backend", "sdpa", "--device", "cpu"], "--backend sdpa cannot serve"),
        (["data", "no/such/folder", "--device", "cpu"], "'no/such/folder' does not exist"),
        (["data"], "SOURCE"),
        (["data", "digits", "--workers", "-1"], '"-1" for --workers. Must be >= 0'),
        (["attentoin"], "attention"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run: Run, words: list[str], expected: str) -> None:
    code, out, err = run("bench", *words)
    assert code == 2
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("illama: error: ")]
    assert expected in line


def test_a_folder_that_cannot_be_made_is_refused_before_the_work(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(model, "bench_networks", None)
    assert "is a file; give a folder" in run("bench", "model", "--out", tmp_path / "file")[2]
    assert "cannot be made: Not a directory" in run("bench", "model", "--out", tmp_path / "file" / "below")[2]
    with pytest.raises(UserError, match="cannot be made"):
        check_folder(tmp_path / "file" / "below")
