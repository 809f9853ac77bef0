"""`benchmarks/gpu.py`: a part that fails, hangs or does not fit costs nothing that was found before or comes after."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.system.processes import Interrupted
from tests.end_to_end.commands import needs_proc, wait_until_gone

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_figures  # noqa: E402
import timeboxed  # noqa: E402
from timeboxed import Group, Outcome, Part, Session  # noqa: E402

pytestmark = needs_proc
WRITES = 'echo "$0" > result; echo said'  # in the part's folder
HANGS = "trap '' TERM; sleep 600 & echo $! > child; wait; sleep 600"


def part(name: str, folder: Path, script: str = WRITES, **more: Any) -> Part:
    """A part that takes milliseconds."""
    values: dict[str, Any] = {"limit_s": 60.0, "worth_s": 0.0, "grace_s": 0.1, "figures": figures} | more
    return Part(name, f"what {name} is", ["sh", "-c", f"cd {folder}/{name} && {script}", name], **values)


def figures(folder: Path) -> dict[str, str]:
    return {"result": (folder / "result").read_text().strip()}


def session(folder: Path, budget_s: float = 600.0, **more: Any) -> Session:
    """With gpu.py's own summary, in `folder`."""
    folder.mkdir(exist_ok=True)
    summary = gpu.Summary(folder, budget_s)
    made = Session(
        folder, budget_s, os.environ, ROOT, keep=lambda outcomes: summary.write(outcomes, made.spent_s), **more
    )
    return made


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    return {found["name"]: found for found in json.loads((folder / "summary.json").read_text())["parts"]}


NAMES = tuple(made.name for made in gpu.parts(gpu.arguments(["--out", "out", "--device", "cpu", "--toy"])))


@pytest.mark.parametrize("limited", NAMES)
def test_a_part_that_is_stopped_costs_nothing_else(limited: str, tmp_path: Path) -> None:
    """Every part of gpu.py at its place, with another content: one hangs and has no time."""
    parts = [part(name, tmp_path, HANGS, limit_s=0.0) if name == limited else part(name, tmp_path) for name in NAMES]
    seen: dict[str, str] = {}

    def say(line: str) -> None:
        """When the limited part begins: what is on disk of those before it?"""
        if f"  {limited}: what" in line:
            seen.update({name: (tmp_path / name / "result").read_text() for name in NAMES[: NAMES.index(limited)]})
            if seen:
                assert {found["status"] for found in stored(tmp_path).values()} == {"done"}

    outcomes = session(tmp_path, say=say).do(parts)
    assert seen == {name: f"{name}\n" for name in NAMES[: NAMES.index(limited)]}
    assert [outcome.name for outcome in outcomes if outcome.bad] == [limited]
    found = stored(tmp_path)
    assert list(found) == list(NAMES)
    assert {name: one["status"] for name, one in found.items()} == dict.fromkeys(NAMES, "done") | {limited: "stopped"}
    assert found[limited]["why"] == "at its limit of 0.0 s"
    assert found[limited]["exit_code"] < 0
    for name in NAMES:
        if name != limited:
            assert found[name]["figures"] == {"result": name}
            assert (tmp_path / name / "log.txt").read_text() == "said\n"
    assert (
        f"| `{limited}`: what {limited} is | **stopped**: at its limit of 0.0 s |"
        in (tmp_path / "summary.md").read_text()
    )


def test_failed_stopped_and_saved(tmp_path: Path) -> None:
    parts = [
        part("fails", tmp_path, "echo partial > result; exit 3"),
        part(
            "saves", tmp_path, "trap 'exit 75' TERM; echo partial > result; sleep 600 & wait", limit_s=1.0, grace_s=30.0
        ),
        part("gone", tmp_path, needs="needs CUDA"),
        dataclasses.replace(part("unread", tmp_path), figures=lambda folder: {"x": str(1 / 0)}),
    ]
    fails, saves, gone, unread = session(tmp_path).do(parts)
    assert (fails.status, fails.why, fails.exit_code, fails.bad) == ("failed", "exit code 3", 3, True)
    assert fails.figures == saves.figures == {"result": "partial"}
    assert (saves.status, saves.exit_code, saves.bad) == ("stopped", 75, False)
    assert saves.why.endswith(", saved")
    assert (gone.status, gone.why, gone.bad) == ("skipped", "needs CUDA", False)
    assert not (tmp_path / "gone").exists()
    assert (unread.status, unread.figures) == (
        "done",
        {"figures": "cannot be read (ZeroDivisionError: division by zero)"},
    )


def test_what_no_longer_fits_is_named(tmp_path: Path) -> None:
    parts = [part("a", tmp_path, worth_s=30.0), part("long", tmp_path, worth_s=70.0), part("c", tmp_path)]
    a, long, c = session(tmp_path, budget_s=60.0).do(parts)
    assert (a.status, long.status, c.status) == ("done", "skipped", "done")
    assert re.fullmatch(r"it needs 70 s, and (60|5\d) s of the budget are left", long.why)


def test_the_budget_bounds_a_part(tmp_path: Path) -> None:
    (outcome,) = session(tmp_path, budget_s=1.0).do([part("a", tmp_path, "sleep 600")])
    assert outcome.status == "stopped"
    assert outcome.seconds < 60


def test_all_processes_of_a_part_end(tmp_path: Path) -> None:
    """One that does not hear SIGTERM, and what it has started."""
    group = Group(["sh", "-c", f"cd {tmp_path} && {HANGS}"], tmp_path / "log", os.environ, ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "child").exists() or not (tmp_path / "child").read_text().strip():
        assert time.monotonic() < until
        time.sleep(0.01)
    assert group.wait(0.0) is None
    assert group.end(0.1) == -9
    wait_until_gone([int((tmp_path / "child").read_text())])


def test_what_runs_beside_has_ended_before_something_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeboxed, "WARM_S", 0.5)
    beside = ["sh", "-c", f"echo $$ > {tmp_path}/beside; exec sleep 600"]
    timed = "kill -0 $(cat ../beside) 2> /dev/null && echo beside > result || echo alone > result"
    parts = [
        part("warms", tmp_path, "while ! test -s ../beside; do sleep 0.05; done; echo > result", beside=[beside]),
        part("tests", tmp_path, timed),
        part("timed", tmp_path, timed, timed=True),
    ]
    _, tests, alone = session(tmp_path).do(parts)
    assert (tests.figures, alone.figures) == ({"result": "beside"}, {"result": "alone"})


def test_an_interrupted_session_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Group.wait
    monkeypatch.setattr(Group, "wait", lambda self, seconds: interrupt() if seconds > 500 else wait(self, seconds))

    def interrupt() -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        session(tmp_path).do([part("a", tmp_path), part("b", tmp_path, "sleep 600", limit_s=550), part("c", tmp_path)])
    found = stored(tmp_path)
    assert {name: one["status"] for name, one in found.items()} == {"a": "done", "b": "stopped"}
    assert found["b"]["why"] == "Interrupted of the session"


def given(*words: str) -> argparse.Namespace:
    return gpu.arguments(["--out", "out", "--device", "cpu", "--toy", *words])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--device", "gpu"], "--device 'gpu' is none; give cuda"),
        (["--budget", "0"], "--budget must be above 0 seconds; got 0"),
        (["--only", "attention", "atention"], "--only atention: there is no such part; there are versions, "),
        (["--limit", "attention"], "--limit attention: give PART=SECONDS"),
        (["--limit", "x=3"], "--limit x=3: give PART=SECONDS, parts are versions, "),
        (["--data", "no/such"], "--data no/such does not exist"),
        (["--epochs", "2"], "--epochs must be at least 8; got 2"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main(["--out", "out", "--device", "cpu", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"gpu.py: error: {expected}")
    assert err.count("\n") == 1


def test_parts_are_chosen_in_their_order() -> None:
    chosen = gpu.chosen(given("--only", "resume", "versions", "--limit", "resume=7"))
    assert [(one.name, one.limit_s) for one in chosen] == [("versions", 60), ("resume", 7.0)]


def test_without_cuda_the_parts_that_need_it_say_so(tmp_path: Path) -> None:
    needs = {one.name: one.needs for one in gpu.parts(given("--data", str(tmp_path)))}
    same = {name for name, why in needs.items() if why == "at toy size it is train-base"}
    assert same == {"train-small", "train-large"}
    cuda = {"kernel-tests", "training-tests", "kernel-times", "train-tiny-graphs", "cifar-compiled", "cifar-graphs"}
    assert {name for name, why in needs.items() if why is not None} == cuda | same
    assert needs["kernel-tests"] == "needs CUDA, and --device is cpu"
    on_cuda = gpu.parts(gpu.arguments(["--out", "out"]))
    assert {one.needs for one in on_cuda} == {None, "needs CIFAR-10: --data PATH"}


READERS: dict[str, tuple[Callable[[Path], dict[str, str]], str, str, dict[str, str]]] = {
    "pytest, whole": (
        gpu_figures.of_tests,
        "log.txt",
        "tests/a.py::b PASSED\n===== 2 failed, 238 passed in 60.01s (0:01:00) =====\n",
        {"tests": "2 failed, 238 passed"},
    ),
    "pytest, killed": (
        gpu_figures.of_tests,
        "log.txt",
        "tests/a.py::b \n[gw1] [ 50%] PASSED tests/a.py::b \n[gw0] [ 99%] FAILED tests/a.py::c[1-2] \ntests/a.py::d ",
        {"tests until then": "1 failed, 1 passed"},
    ),
    "kernels, killed": (
        gpu_figures.of_kernels,
        "kernels.jsonl",
        '{"device": "x"}\n{"kernel": "row", "shape": [1, 2], "ms": 0.5}\n'
        '{"kernel": "row", "shape": [1, 2], "ms": 0.25, "tiles": "T"}\n'
        '{"kernel": "row", "shape": [1, 2], "failed": "x"}\n'
        '{"kernel": "row", "shape": [1, 2], "ms": 0.1, "alpha": 0.5}\n{"kernel": "ro',
        {"(1, 2) row": "0.25 ms T", "rows that failed": "1"},
    ),
    "a run, killed": (
        gpu_figures.of_run,
        "run/metrics.jsonl",
        '{"kind": "train", "images_per_s": 5.0, "epoch": 0.5}\n{"kind": "train", "images_per_s": 4.0, "epoch": 1.0}\n'
        '{"kind": "eval", "top1": 12.5, "epoch": 1}\n{"kind": "tr',
        {"pace": "5 images/s at best, 4 at last", "epochs": "1.0", "top-1": "12.50 % after epoch 1"},
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_figures_are_read_of_what_is_there(name: str, tmp_path: Path) -> None:
    read, file, text, expected = READERS[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert read(tmp_path) == expected


def test_the_command_itself(tmp_path: Path) -> None:
    """One part without time, some without CUDA or data, one real one."""
    words = ["--device", "cpu", "--toy", "--out", str(tmp_path / "out"), "--limit", "versions=0"]
    words += ["--only", "versions", "kernel-tests", "attention", "cifar-run"]
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    found = stored(tmp_path / "out")
    assert [(name, one["status"]) for name, one in found.items()] == [
        ("versions", "stopped"),
        ("kernel-tests", "skipped"),
        ("attention", "done"),
        ("cifar-run", "skipped"),
    ]
    row = "(B, h, N, d) = (1, 2, 9, 32), float32: illama reference"
    assert re.match(r"[\d.e-]+ ms, ratio ", found["attention"]["figures"][row])
    assert (tmp_path / "out" / "attention" / "report.json").is_file()
    page = (tmp_path / "out" / "summary.md").read_text()
    assert "hardware and versions are not known" in page
    assert row in page
    assert "attention: done" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("summary.md")
    assert Outcome("", "", []).status == "running"


def test_the_parts_are_listed_anywhere(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As the documentation has it: no folder, no device."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(NAMES)
    assert gpu.main([]) == 2
    assert "there is no CUDA device" in capsys.readouterr().err
