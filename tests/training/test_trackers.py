"""Weights & Biases: asked for by name, one run for all sittings, and never the reason why training ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from illama.errors import UserError
from illama.training.log import RunLog
from illama.training.trackers import Tracker, check_tracker, open_tracker


class FakeRun:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.metrics: dict[str, dict[str, Any]] = {}
        self.logged: list[dict[str, Any]] = []
        self.ended: int | None = None

    def define_metric(self, name: str, **how: Any) -> None:
        self.metrics[name] = how

    def log(self, values: dict[str, Any]) -> None:
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


class FakeWandb(ModuleType):
    """Stands for the package wandb."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []
        self.error: Exception | None = None

    def Settings(self, **settings: Any) -> dict[str, Any]:  # noqa: N802 - its name there
        return settings

    def init(self, **arguments: Any) -> FakeRun:
        if self.error is not None:
            raise self.error
        self.inits.append(arguments)
        self.runs.append(FakeRun())
        return self.runs[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


def opened(run_dir: Path, *, resume: bool) -> Tracker:
    tracker = open_tracker("wandb", run_dir, {"seed": 3}, resume)
    assert tracker is not None
    return tracker


def test_nothing_unless_asked_for(tmp_path: Path, wandb: FakeWandb) -> None:
    check_tracker(None)
    assert open_tracker(None, tmp_path, {}, False) is None
    assert not list(tmp_path.iterdir())
    assert not wandb.inits


def test_records_are_drawn_over_their_own_step(tmp_path: Path, wandb: FakeWandb) -> None:
    """No step is handed to log(): W&B refuses one that goes back, and a crash makes steps again."""
    tracker = opened(tmp_path, resume=False)
    tracker.write({"kind": "train", "step": 7, "loss": 0.5, "mfu": None, "note": "x"})
    tracker.write({"kind": "eval", "step": 5, "top1": 12.5})
    tracker.close(failed=False)
    (run,) = wandb.runs
    assert run.logged == [{"train/loss": 0.5, "step": 7}, {"eval/top1": 12.5, "step": 5}]
    assert {name: how.get("step_metric") for name, how in run.metrics.items()} == {
        "step": None,
        "train/*": "step",
        "eval/*": "step",
    }
    assert run.ended == 0


def test_every_sitting_continues_the_same_run(tmp_path: Path, wandb: FakeWandb) -> None:
    for resume in (False, True, True):
        opened(tmp_path, resume=resume).close(failed=True)
    opened(tmp_path, resume=False)  # begun anew in the same folder
    first, second, third, other = wandb.inits
    assert first["id"] == second["id"] == third["id"] != other["id"]
    assert first["resume"] == "allow"
    assert first["dir"] == str(tmp_path)
    assert first["name"] == tmp_path.name
    assert first["config"] == {"seed": 3}
    assert first["project"] == "illama"
    assert [run.ended for run in wandb.runs] == [1, 1, 1, None]


def test_the_users_project_wins(tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    opened(tmp_path, resume=False)
    assert wandb.inits[0]["project"] == "mine"


def test_a_service_that_is_down_refuses_a_new_run_and_spares_an_old_one(
    tmp_path: Path, wandb: FakeWandb, caplog: pytest.LogCaptureFixture
) -> None:
    wandb.error = ConnectionError("no\nroute")
    with pytest.raises(UserError, match=r"cannot begin: no route; run wandb login, or set WANDB_MODE=offline"):
        open_tracker("wandb", tmp_path, {}, False)
    assert open_tracker("wandb", tmp_path, {}, True) is None
    assert "the run goes on without it: no route" in caplog.text


def test_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    for ask in (lambda: check_tracker("wandb"), lambda: open_tracker("wandb", tmp_path, {}, False)):
        with pytest.raises(UserError, match=r'pip install "illama\[track\]"'):
            ask()
    assert not list(tmp_path.iterdir())


def test_a_folder_of_that_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B writes into ./wandb, and Python takes a folder for an empty package."""
    monkeypatch.setitem(sys.modules, "wandb", ModuleType("wandb"))
    with pytest.raises(UserError, match=r'pip install "illama\[track\]"'):
        check_tracker("wandb")


def test_an_unknown_tracker() -> None:
    with pytest.raises(UserError, match="unknown tracker 'mlflow'; allowed: wandb"):
        check_tracker("mlflow")


REAL = """
import sys
from pathlib import Path
from illama.training.log import RunLog
from illama.training.trackers import open_tracker
run_dir, resume = Path(sys.argv[1]), sys.argv[2] == "resume"
tracker = open_tracker("wandb", run_dir, {"seed": 3}, resume)
log = RunLog(run_dir, keep_bytes=0, step=0, total_steps=4, tracker=tracker)
with log.progress():
    for step in (3, 1, 2):
        log.write({"kind": "train", "step": step, "loss": 1.0 / step})
"""


def test_the_real_package_offline(tmp_path: Path) -> None:
    """Two sittings, a step that goes back, no network and no account."""
    pytest.importorskip("wandb")
    environment = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false"}
    for sitting in ("new", "resume"):
        done = subprocess.run(
            [sys.executable, "-c", REAL, str(tmp_path), sitting], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "failed" not in done.stderr
    run_id = (tmp_path / "wandb_run_id").read_text().strip()
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(stored) == 2
    for path in stored:
        assert path.read_bytes().count(b"train/loss") >= 3


def test_a_failure_later_ends_nothing(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(self: FakeRun, values: dict[str, Any]) -> None:
        raise ConnectionError("gone")

    monkeypatch.setattr(FakeRun, "log", gone)
    log = RunLog(tmp_path, keep_bytes=0, step=0, total_steps=2, tracker=opened(tmp_path, resume=False))
    with log.progress():
        for step in (1, 2):
            log.write({"kind": "train", "step": step, "loss": 1.0})
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    assert capsys.readouterr().err.count("Weights & Biases failed, the run goes on without it") == 1
