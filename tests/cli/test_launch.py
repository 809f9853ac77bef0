"""`illama launch` as it is typed: processes of its own, their one outcome, their one line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from illama.cli.launch import end_like
from illama.errors import UserError
from tests.cli.conftest import Run
from tests.training.conftest import TOY

PATIENCE_S = 120.0
STEPS = 80  # of the run that is stopped: 5 in each of 16 epochs; enough to stop it on the way


def launch(out: Path, *words: str, processes: int = 2) -> subprocess.Popen[str]:
    """`illama launch` with one thread for each process."""
    command = ["launch", "--nproc-per-node", str(processes), "train", "digits_micro", *TOY, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "illama", *command, "--device", "cpu", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, out, err


def steps_logged(run_dir: Path) -> int:
    """Step of the last record."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["step"]) if whole else 0


def state(run: Run, run_dir: Path) -> tuple[str, int]:
    """State and step, as `illama runs` says."""
    code, out, _ = run("runs", run_dir, "--json", "-")
    assert code == 0
    (found,) = json.loads(out)["runs"]
    return found["state"], found["step"]


def test_a_stopped_run_says_75_and_the_same_command_ends_it(run: Run, tmp_path: Path) -> None:
    """SIGTERM to the launcher alone, as schedulers send it, after some steps."""
    words = (f"schedule.epochs={STEPS // 5}", "train.eval_every_epochs=8")
    first = launch(tmp_path / "run", *words)
    until = time.monotonic() + PATIENCE_S
    while steps_logged(tmp_path / "run") < 4 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    code, out, err = ended(first)
    assert (code, out) == (75, "")
    said = re.findall(r"illama: stopped at step (\d+) and saved; run the same command again to continue", err)
    assert len(said) == 1, err
    assert "error" not in err
    assert "torch/distributed" not in err
    assert 4 <= int(said[0]) < STEPS
    assert state(run, tmp_path / "run") == ("stopped", int(said[0]))

    code, out, err = ended(launch(tmp_path / "run", *words))
    assert code == 0, err
    assert re.fullmatch(rf"test top-1 [\d.]+ % after {STEPS} steps, .*run\n", out)
    assert f"continuing {tmp_path / 'run'} after step {said[0]}\n" in err
    assert err.count("2 processes x cpu (1 threads)") == 1
    assert state(run, tmp_path / "run") == ("finished", STEPS)


def test_what_the_processes_refuse_is_told_once(tmp_path: Path) -> None:
    code, out, err = ended(launch(tmp_path / "run", "data.path=/no/such/folder", "data.name=folder"))
    assert (code, out) == (2, "")
    assert err.startswith("illama: error: ")
    assert err.count("\n") == 1, err
    assert "/no/such/folder" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "launch needs a command behind torchrun's options"),
        (["--nproc-per-node", "2"], "launch needs a command behind torchrun's options"),
        (["--nproc-per-node", "2", "trian", "x"], "launch starts train or eval, given trian"),
        (["predict", "runs/x", "photo.jpg"], "launch starts train or eval, given predict"),
        (["launch", "train", "digits_micro"], "launch starts train or eval, given launch"),
        (["--nprok", "2", "train", "digits_micro"], "unrecognized arguments: --nprok"),
        (["--nproc-per-node", "many", "train", "digits_micro"], "Unsupported nproc_per_node value: many"),
        (["--nnodes", "0", "train", "digits_micro"], "min_nodes must be > 0"),
        (["--nproc-per-node", "2", "train", "digits_mikro"], "did you mean digits_micro?"),
        (["--nproc-per-node", "2", "train", "digits_micro", "optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["--role", "eval", "train", "digits_micro", "--outt", "x"], "Unknown option: --outt"),
    ],
)
def test_mistakes_are_one_line_before_any_process_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: str
) -> None:
    monkeypatch.setattr("torch.distributed.run.run", lambda options: pytest.fail("processes were started"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = run("launch", *words)
    assert (code, out) == (2, "")
    assert err.startswith("illama: error: ")
    assert err.count("\n") == 1
    assert expected in err


def test_printing_a_recipe_starts_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.run.run", lambda options: pytest.fail("processes were started"))
    code, out, _ = run("launch", "--nproc-per-node", 8, "train", "digits_micro", "seed=5", "--print")
    assert code == 0
    assert "seed: 5" in out


@pytest.mark.parametrize(
    ("codes", "told"),
    [
        ({0: -9, 1: 2}, "process 0 was ended by signal 9 (SIGKILL, as when memory runs out); run the same command"),
        ({0: -11}, "process 0 was ended by signal 11 (SIGSEGV);"),
        ({0: -15, 1: -15}, "process 0 was ended by signal 15 (SIGTERM), process 1 was ended by signal 15 (SIGTERM);"),
        ({0: 2, 1: 3}, "process 1 ended with exit code 3;"),
    ],
)
def test_a_process_that_could_not_tell_is_told_of(codes: dict[int, int], told: str) -> None:
    with pytest.raises(UserError) as end:
        end_like(codes)
    assert str(end.value).startswith(told)


def test_the_processes_ends_are_the_launchers() -> None:
    several = (({0: 75, 1: 75}, 75), ({0: -15, 1: 75}, 75), ({0: 2, 1: -15}, 2), ({0: 2, 1: 75}, 2), ({0: 2, 1: 1}, 1))
    for codes, code in several:
        with pytest.raises(SystemExit) as end:
            end_like(codes)
        assert end.value.code == code
