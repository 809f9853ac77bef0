"""eval, predict and quickstart on real, tiny models."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from illama.cli import quickstart
from tests.cli.conftest import Run


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(values).save(folder / f"{i}.png")
    return folder


def test_eval_prints_and_writes_the_same_numbers(run: Run, digits_run: Path, tmp_path: Path) -> None:
    code, out, _ = run("eval", digits_run, "--device", "cpu", "--json", tmp_path / "result.json")
    assert code == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["count"] == 360
    assert f"top-1 {result['top1']:.2f} %" in out
    assert "360 images" in out
    assert "checkpoints/last/model.safetensors, step 0" in out
    for name, accuracy in result["per_class"].items():
        assert re.search(rf"^  {name} +{accuracy:.2f} %", out, re.MULTILINE)
    code, out, _ = run("eval", digits_run, "--device", "cpu", "--json", "-", "--softness", "1")
    assert json.loads(out)["softness"] == 1.0


def test_eval_with_many_classes_shows_the_weakest(digits_run: Path) -> None:
    from illama.cli.eval import report
    from illama.evaluation import EvalResult

    hits = tuple(range(30))
    result = EvalResult(50.0, 90.0, 1.0, 900, hits, (30,) * 30, 0.0, 10.0, {"bad.jpg": "cut off"})
    text = report(result)
    assert "the 10 weakest of 30 classes" in text
    assert "1 unreadable images skipped" in text
    assert len(text.splitlines()) == 14


def test_predict_prints_json_and_csv(run: Run, digits_run: Path, pictures: Path, tmp_path: Path) -> None:
    code, out, err = run("predict", digits_run, pictures, "--top-k", "2", "--device", "cpu")
    assert (code, err) == (0, "")
    assert len(out.splitlines()) == 3
    code, out, _ = run(
        "predict", digits_run, pictures / "*.png", "--top-k", "2", "--json", "-", "--csv", tmp_path / "p.csv"
    )
    assert code == 0
    plain = json.loads(out)
    rows = list(csv.DictReader((tmp_path / "p.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert rows[0]["class"] == plain[0]["predictions"][0]["class"]
    assert float(rows[0]["probability"]) == plain[0]["predictions"][0]["probability"]


def test_a_broken_image_is_named_after_the_others_are_done(
    run: Run, digits_run: Path, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "1.png").write_bytes(b"no picture")
    code, out, err = run("predict", digits_run, pictures, "--device", "cpu", "--csv", tmp_path / "p.csv")
    assert code == 2
    assert len(out.splitlines()) == 3
    assert "1.png: cannot be read" in out
    assert err.count("\n") == 1
    assert "1 of 3 images cannot be read" in err
    assert str(pictures / "1.png") in err
    assert sum(row["problem"] != "" for row in csv.DictReader((tmp_path / "p.csv").read_text().splitlines())) == 1


@pytest.mark.parametrize("target", ["no/folder/x.json", "."])
def test_result_files_are_checked_before_the_work(run: Run, target: str) -> None:
    code, _, err = run("eval", "no/such/run", "--json", target)
    assert code == 2
    assert f"--json {target}" in err


def test_two_results_cannot_share_stdout(run: Run) -> None:
    code, _, err = run("predict", "no/such/run", "x.png", "--json", "-", "--csv", "-")
    assert code == 2
    assert "--json and --csv cannot both write to stdout" in err


def test_quickstart_ends_with_commands_that_work(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = ["schedule.epochs=1", "schedule.warmup_epochs=0", "schedule.softness.cutoff_epochs=0"]
    code, out, _ = run("quickstart", *short, "--out", "my runs/first", "--device", "cpu")
    assert code == 0
    assert re.search(r"test top-1 \d+\.\d+ %", out)
    for name in ("recipe.yaml", "environment.json", "classes.json", "metrics.jsonl", "curves.png", "predictions.png"):
        assert (tmp_path / "my runs/first" / name).is_file(), name
    commands = [shlex.split(line) for line in out.splitlines() if line.startswith("  illama ")]
    assert [words[1] for words in commands] == ["predict", "eval", "train"]
    for words in commands[:2]:
        code, out, err = run(*words[1:], "--device", "cpu")
        assert (code, err) == (0, "")
    assert out.count("of 36") > 0


def test_the_program_is_called_as_the_shell_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "a venv/bin/illama")])
    monkeypatch.setenv("PATH", str(tmp_path))
    assert quickstart.program() == "'a venv/bin/illama'"
    (tmp_path / "illama").write_text("#!/bin/sh\n")
    (tmp_path / "illama").chmod(0o755)
    assert quickstart.program() == "illama"
