"""A study that is killed, or stopped, goes on: finished runs are not repeated, the report is the same to the byte."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from illama.training.runs import read_run
from tests.end_to_end.commands import children, gone, needs_proc, wait_until_gone
from tests.reproduce.conftest import TOY

pytestmark = needs_proc
PATIENCE_S = 240
STUDY = (
    *("reproduce", "peers", *(word for word in TOY if not word.startswith("schedule.epochs"))),
    *(
        "schedule.epochs=16",
        "train.save_every_steps=2",
        "train.eval_every_epochs=4",
        "--data",
        "digits",
        "--seeds",
        "1",
        "--device",
        "cpu",
    ),
)


def start(out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "illama", *STUDY, "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (out.parent / f"{out.name}.txt").open("a") as said:
        return subprocess.Popen(command, stdout=said, stderr=said, text=True, env=environment, start_new_session=True)


def until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, "ended before"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def finished(out: Path) -> dict[Path, tuple[int, int]]:
    """Log of each finished run, with inode and time of its last change."""
    logs = [run / "metrics.jsonl" for run in (out / "runs").glob("*") if read_run(run).state == "finished"]
    return {log: (log.stat().st_ino, log.stat().st_mtime_ns) for log in logs}


def in_the_second_run(out: Path) -> bool:
    """Whether one run is finished and another one has saved something."""
    if len(list((out / "runs").glob("*"))) < 2 or not finished(out):
        return False
    return any(read_run(run).step > 0 and read_run(run).state == "running" for run in (out / "runs").glob("*"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    assert start(out).wait(PATIENCE_S) == 0
    return out


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 75),
        pytest.param(signal.SIGINT, 75, marks=pytest.mark.faults),
        pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.faults),
    ],
)
def test_a_study_goes_on(number: signal.Signals, code: int, undisturbed: Path, tmp_path: Path) -> None:
    """SIGINT as the terminal sends it: to the whole group."""
    out = tmp_path / "out"
    study = start(out)
    until(study, lambda: in_the_second_run(out))
    workers = children(study.pid)
    assert workers
    (os.killpg if number == signal.SIGINT else os.kill)(study.pid, number)
    assert study.wait(PATIENCE_S) == code, (tmp_path / "out.txt").read_text()
    assert ("1 running run(s) saved; run" in (tmp_path / "out.txt").read_text()) == (code == 75)
    wait_until_gone(workers)
    before = finished(out)
    assert 1 <= len(before) < 3
    again = start(out)
    assert again.wait(PATIENCE_S) == 0, (tmp_path / "out.txt").read_text()
    assert before.items() <= finished(out).items(), "a finished run was touched"
    assert len(finished(out)) == 3
    reports = {path.name: path.read_bytes() for path in (undisturbed / "peers").iterdir()}
    assert {"report.html", "report.md", "results.json", "peers-curves.svg"} <= reports.keys()
    assert {path.name: path.read_bytes() for path in (out / "peers").iterdir()} == reports


def test_a_worker_that_dies_costs_one_run_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = start(out)
    until(study, lambda: in_the_second_run(out))
    trainers = [pid for pid in children(study.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(trainers) == 1
    os.kill(trainers[0], signal.SIGKILL)
    assert study.wait(PATIENCE_S) == 2
    assert gone(trainers[0])
    said = (tmp_path / "out.txt").read_text()
    assert "1 of 3 runs failed" in said
    assert "its process died, as when memory runs out" in said
    assert len(finished(out)) == 2
    assert start(out).wait(PATIENCE_S) == 0
    assert len(finished(out)) == 3
