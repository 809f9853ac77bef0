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

from illama.cli.main import main
from illama.reproduce.runner import LOOK_EVERY_S
from illama.training.runs import read_run
from tests.end_to_end.commands import children, gone, needs_proc, wait_until_gone
from tests.reproduce.conftest import TOY, InlineSlot

pytestmark = needs_proc
PATIENCE_S = 240
STUDY = (
    *("reproduce", "peers", *(word for word in TOY if not word.startswith("schedule.epochs"))),
    *(
        "schedule.epochs=24",
        "train.save_every_steps=2",
        "train.eval_every_epochs=8",
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


def in_run(number: int, out: Path) -> bool:
    """Whether as many runs have begun, the first is finished, and one that runs has saved something and is not near its
    end, where it would be done before a signal comes."""
    if len(list((out / "runs").glob("*"))) < number or not finished(out):
        return False
    states = map(read_run, (out / "runs").glob("*"))
    return any(run.state == "running" and run.step > 0 and run.epoch < 16 for run in states)


def trainers(study: subprocess.Popen[str]) -> list[int]:
    """The processes of its slots."""
    return [pid for pid in children(study.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def said(out: Path) -> str:
    return (out.parent / f"{out.name}.txt").read_text()


@pytest.fixture
def undisturbed(slot: InlineSlot, tmp_path: Path) -> dict[str, bytes]:
    """The report of a study that nothing befell."""
    assert main([*STUDY, "--out", str(tmp_path / "whole")]) == 0
    reports = read_report(tmp_path / "whole")
    assert {"report.html", "report.md", "results.json", "peers-curves.svg"} <= reports.keys()
    return reports


def read_report(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "peers").iterdir()}


def goes_on(out: Path, before: dict[Path, tuple[int, int]], undisturbed: dict[str, bytes], code: int) -> None:
    """The same command again, which ended with `code`, trained what was left; its report is the undisturbed study's."""
    assert code == 0, said(out)
    assert before.items() <= finished(out).items(), "a finished run was touched"
    assert len(finished(out)) == 3
    assert read_report(out) == undisturbed


def test_a_study_that_loses_a_process_and_is_stopped(undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """The process costs its run alone; the signal saves the one that runs."""
    out = tmp_path / "out"
    study = start(out)
    until(study, lambda: in_run(2, out))
    (trainer,) = trainers(study)
    os.kill(trainer, signal.SIGKILL)
    until(study, lambda: in_run(3, out))
    (third,) = trainers(study)
    os.kill(third, signal.SIGSTOP)  # or it may be done before the study looks whether it was asked to stop
    os.kill(study.pid, signal.SIGTERM)
    time.sleep(3 * LOOK_EVERY_S)
    os.kill(third, signal.SIGCONT)
    assert study.wait(PATIENCE_S) == 75, said(out)
    assert "failed: its process died, as when memory runs out (2 of 3 runs)" in said(out)
    assert "1 running run(s) saved; run" in said(out)
    wait_until_gone([trainer, third])
    before = finished(out)
    assert len(before) == 1
    goes_on(out, before, undisturbed, main([*STUDY, "--out", str(out)]))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 75), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_study_goes_on(number: signal.Signals, code: int, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """SIGINT as the terminal sends it: to the whole group."""
    out = tmp_path / "out"
    study = start(out)
    until(study, lambda: in_run(2, out))
    workers = children(study.pid)
    assert workers
    (os.killpg if number == signal.SIGINT else os.kill)(study.pid, number)
    assert study.wait(PATIENCE_S) == code, said(out)
    assert ("1 running run(s) saved; run" in said(out)) == (code == 75)
    wait_until_gone(workers)
    before = finished(out)
    assert 1 <= len(before) < 3
    goes_on(out, before, undisturbed, start(out).wait(PATIENCE_S))


@pytest.mark.faults
def test_a_worker_that_dies_costs_one_run_only(tmp_path: Path) -> None:
    out = tmp_path / "out"
    study = start(out)
    until(study, lambda: in_run(2, out))
    (trainer,) = trainers(study)
    os.kill(trainer, signal.SIGKILL)
    assert study.wait(PATIENCE_S) == 2
    assert gone(trainer)
    assert "1 of 3 runs failed" in said(out)
    assert len(finished(out)) == 2
