"""`illama reproduce`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from illama.cli.main import main
from tests.reproduce.conftest import TOY, InlineSlot

HERE = ("--data", "digits", "--seeds", "1", "--device", "cpu")


def test_a_study_is_printed_and_written(slot: InlineSlot, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["reproduce", "peers", *TOY, *HERE, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "VisionLLaMA-plain" in out
    folder = tmp_path / "peers"
    assert out.splitlines()[-3:] == [str(folder / name) for name in ("report.html", "report.md", "results.json")]
    assert main(["reproduce", "peers", *TOY, *HERE, "--out", str(tmp_path), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "results.json").read_text())


def test_a_dry_run_trains_nothing(slot: InlineSlot, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    words = ["reproduce", "peers", *TOY, *HERE, "--out", str(tmp_path)]
    assert main([*words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "3 runs, 0 finished; 3 to train take about" in out
    assert list((tmp_path / "runs").iterdir()) == []
    assert main(words) == 0
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    assert "3 runs, 3 finished; nothing is left to do" in capsys.readouterr().out


def test_complexity_needs_no_data(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["reproduce", "complexity", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "complexity" / "results.json").read_text())["complexity"]
    assert len(records) > 20
    assert str(tmp_path / "complexity" / "report.html") in capsys.readouterr().out


def test_a_failed_run_is_exit_code_2_after_the_report(slot: InlineSlot, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    edits = (*TOY, "optimizer.lr=1e30", "train.log_every_steps=1")
    assert main(["reproduce", "peers", *edits, *HERE, "--out", str(tmp_path)]) == 2
    said = capsys.readouterr()
    (error,) = [line for line in said.err.splitlines() if line.startswith("illama: error:")]
    assert "3 of 3 runs failed, the first: vit-" in error
    assert "the loss is not finite at step" in error
    assert "0 of 3 runs are finished" in (tmp_path / "peers" / "report.md").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "which study? known: roadmap"),
        (["roadmap"], "which images? give --data"),
        (["roadmap", "--data", "digits", "model.ffn=mlp"], "model.ffn: this is what the rows of roadmap decide"),
        (["roadmap", "--data", "no/cifar10"], "no/cifar10' does not exist"),
        (["cifar", "--recipe", "cifar10_transfer_tiny", "--init-from", "vit"], "'vit': allowed: illama=RUN or vit=RUN"),
        (["roadmap", "--data", "digits", "--device", "tpu"], "'tpu' cannot be used"),
        (["roadmap", "--recipe", "cifar10_micro", "--device", "cpu"], "needs a path"),
        (["roadmap", "--data", "digits", "model.num_classes=7", "--device", "cpu"], "the data has 10 classes"),
    ],
)
def test_one_line_for_what_cannot_be(words: list[str], message: str, tmp_path: Path, monkeypatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    assert main(["reproduce", "peers", *HERE, "--out", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "file cannot be made" in line
