"""`illama reproduce`: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from illama.cli.main import main
from illama.errors import UserError
from illama.reproduce import runner
from illama.training.loop import Run
from tests.reproduce.conftest import TOY, InlineSlot

HERE = ("--data", "digits", "--seeds", "1", "--device", "cpu")


def fail(run: Run, batches: Any) -> float:
    """In the place of a step: what the user can mend, and what nobody has foreseen."""
    if run.run_dir.name.startswith("visionllama-"):
        raise UserError("the loss is not finite")
    raise RuntimeError("CUDA out of memory. Tried\nmuch")


def test_a_study_from_its_plan_to_more_seeds(
    slot: InlineSlot, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs that fail stop no other and are tried again; what is finished is left alone; other rows start from it."""
    out = tmp_path / "out"
    folder = out / "peers"
    words = ["reproduce", "peers", *TOY, *HERE, "--out", str(out)]
    monkeypatch.setattr(runner, "TIMED_S", 0.1)
    assert main([*words, "--dry-run"]) == 0
    assert "3 runs, 0 finished; 3 to train take about" in capsys.readouterr().out
    assert list((out / "runs").iterdir()) == []

    step = Run._step
    monkeypatch.setattr(
        Run, "_step", lambda run, batches: (step if run.run_dir.name.startswith("vit-") else fail)(run, batches)
    )
    assert main(words) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("illama: error:")]
    assert "2 of 3 runs failed, the first: visionllama-" in error
    report = (folder / "report.md").read_text()
    assert "1 of 3 runs are finished." in report
    assert "VisionLLaMA-plain failed: the loss is not finite." in report
    assert "soft mask failed: RuntimeError: CUDA out of memory. Tried." in report
    rows = json.loads((folder / "results.json").read_text())["studies"][0]["rows"]
    assert [(len(row["runs"]), len(row["failed"]), row["agrees"]) for row in rows] == [
        (1, 0, None),
        (0, 1, None),
        (0, 1, None),
    ]

    monkeypatch.setattr(Run, "_step", step)
    slot.trained.clear()
    assert main(words) == 0
    assert len(slot.trained) == 2
    said = capsys.readouterr().out
    assert "VisionLLaMA-plain" in said
    assert said.splitlines()[-3:] == [str(folder / name) for name in ("report.html", "report.md", "results.json")]
    assert main([*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((folder / "results.json").read_text())
    assert main([*words, "--dry-run"]) == 0
    assert "3 runs, 3 finished; nothing is left to do" in capsys.readouterr().out
    assert len(slot.trained) == 2

    slot.trained.clear()
    words[words.index("--seeds") + 1] = "2"
    assert main([*words, "--json", "-"]) == 0
    assert [folder.name.endswith("-seed1") for folder in slot.trained] == [True] * 3
    rows = json.loads(capsys.readouterr().out)["studies"][0]["rows"]
    assert [run["seed"] for run in rows[0]["runs"]] == [0, 1]

    # rows that start from trained weights: a begun run has its weights, and refuses others
    vit, illama = ((out / "runs" / row["folders"][0]) for row in (rows[0], rows[2]))
    words = ["reproduce", "cifar", "--recipe", "digits_micro", *TOY, *HERE, "--out", str(out)]
    words += ["--init-from", f"vit={vit}", f"illama={illama}"]

    def ends(run: Run, batches: Any) -> float:
        if run.state.progress.step == 4:
            raise UserError("here it ends")
        return step(run, batches)

    monkeypatch.setattr(Run, "_step", ends)
    assert main(words) == 2
    assert "3 of 3 runs failed, the first: transfer_vit-" in capsys.readouterr().err
    monkeypatch.setattr(Run, "_step", step)
    assert main(words) == 0
    assert "3 of 3 runs are finished." in (out / "cifar" / "report.md").read_text()


def test_complexity_needs_no_data(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert main(["reproduce", "complexity", "--out", str(tmp_path)]) == 0
    records = json.loads((tmp_path / "complexity" / "results.json").read_text())["complexity"]
    assert len(records) > 20
    assert str(tmp_path / "complexity" / "report.html") in capsys.readouterr().out


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
