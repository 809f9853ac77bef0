"""What a benchmark does where there is no memory for something, and what is left of one that is interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.bench import attention, networks
from illama.bench import model as bench_model
from illama.bench.attention import SDPA, SDPA_CAUSAL, bench_attention
from illama.bench.interleave import Case, Effort, measure
from illama.bench.machine import Ceilings, out_of_memory, unless_out_of_memory
from illama.bench.model import bench_networks
from illama.bench.networks import Treatment, build_illama
from illama.bench.options import AttentionBenchOptions, ModelOptions
from illama.bench.report import Report, as_markdown, print_report, write_report
from illama.cli.main import main
from illama.errors import UserError
from tests.bench.conftest import TOY, FakeTimer
from tests.cli.conftest import Run, run
from tests.end_to_end.commands import needs_proc

__all__ = ["run"]

NO_ROOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB")
WHY = "out of memory (tried to allocate 2.00 GiB)"
VIT = "timm ViT 32 x 2"


def no_room(*_: object, **__: object) -> Any:
    raise NO_ROOM


def cpu_allocator() -> None:
    torch.empty(1 << 50)


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        (no_room, WHY),
        (cpu_allocator, "out of memory (tried to allocate 4,194,304.00 GiB)"),
        (lambda: bytearray(1 << 62), "out of memory"),
    ],
)
def test_it_says_what_was_tried(fails: Callable[[], object], expected: str) -> None:
    told: list[str] = []
    with unless_out_of_memory(told.append):
        fails()
    assert told == [expected]


def test_another_error_stays_what_it_is() -> None:
    assert not out_of_memory(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"), unless_out_of_memory(lambda why: None):
        raise RuntimeError("a bug")


class Hungry:
    """A call that runs out of memory the n-th time; what it holds until then can be watched."""

    def __init__(self, fails_at: int | None) -> None:
        self.left = fails_at

    def __call__(self) -> None:
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                held = torch.ones(3)
                raise torch.OutOfMemoryError(f"out of memory {held.sum()}")


def rounds_of(fails_at: list[int | None], rounds: int = 4) -> tuple[Any, list[str], list[Any]]:
    """The rounds, what on_failure was told, and what is left of the calls once they failed."""
    told: list[str] = []
    cases = [Case(str(i), Hungry(at)) for i, at in enumerate(fails_at)]
    calls = [weakref.ref(case.run) for case in cases]
    found = measure(cases, Effort(rounds=rounds), timer=FakeTimer(lambda run: 1.0), on_failure=told.append)
    assert [case.name for case in cases] == [str(i) for i, at in enumerate(fails_at) if at is None]
    return found, told, calls


@pytest.mark.parametrize("at", [0, 1, 2, 4], ids=["first call", "warm-up", "first round", "third round"])
@pytest.mark.parametrize("failing", [{0}, {1}, {2}, {0, 2}, {0, 1, 2}], ids=str)
def test_the_others_go_on(failing: set[int], at: int) -> None:
    found, told, _ = rounds_of([at if i in failing else None for i in range(3)])
    kept = [str(i) for i in range(3) if i not in failing]
    assert list(found.seconds) == list(found.calls) == list(found.first_call_s) == kept
    assert all(times == [1.0] * 4 for times in found.seconds.values())
    assert found.made == (4 if kept else 0)
    assert sorted(told) == sorted(found.failures) == sorted(map(str, failing))
    for name in "012":
        for over in "012":
            assert (found.speedup(name, over) is not None) == ({name, over} <= set(kept))
    json.dumps(found.to_dict())


def test_what_has_failed_is_let_go_before_the_next_call() -> None:
    """Its tensors are what the next one may need."""
    hungry = Hungry(1)
    gone = weakref.ref(hungry)
    alive: list[bool] = []
    cases = [Case("hungry", hungry), Case("modest", lambda: alive.append(gone() is not None))]
    del hungry

    class NoMemoryOfCalls(FakeTimer):
        def seconds(self, run: Callable[[], object], calls: int) -> float:
            run()
            return 1.0

    measure(cases, Effort(rounds=2), timer=NoMemoryOfCalls(lambda run: 1.0))
    assert len(alive) == 4
    assert not any(alive)


def options(**changes: Any) -> ModelOptions:
    return ModelOptions(**{"device": "cpu", "batch": (1, 2, 3), "img_size": 32, "rounds": 2} | changes)


@pytest.fixture
def _timed(monkeypatch: pytest.MonkeyPatch, known_ceilings: Ceilings) -> None:
    for module in (bench_model, attention):
        monkeypatch.setattr(module, "timer_for", lambda device: FakeTimer(lambda run: 1e-3))


def without_room(monkeypatch: pytest.MonkeyPatch, ours: set[int], vit: set[int], *, in_build: bool) -> None:
    """There is no memory for the networks at these batches, when they are built or in their first call."""
    vit_of_timm = networks._build_vit
    for name, batches, original in (("build_illama", ours, build_illama), ("_build_vit", vit, vit_of_timm)):

        def build(treatment: Treatment, batches: set[int] = batches, original: Any = original) -> Any:
            if treatment.batch not in batches:
                return original(treatment)
            if in_build:
                raise NO_ROOM
            network = original(treatment)
            object.__setattr__(network.case, "run", no_room)
            return network

        monkeypatch.setattr(networks, name, build)


def rows(report: Report) -> list[list[tuple[str, bool, bool, str | None]]]:
    """Of each group and row: name, whether there is a time, whether a ratio, and why not."""
    return [
        [(row.name, row.seconds is not None, row.ratio is not None, row.failure) for row in group.cases]
        for group in report.groups
    ]


BOTH = [("illama", True, False, None), (VIT, True, True, None)]
NO_OURS = [("illama", False, False, WHY), (VIT, True, False, None)]
NO_VIT = [("illama", True, False, None), (VIT, False, False, WHY)]
NEITHER = [("illama", False, False, WHY), (VIT, False, False, WHY)]


@pytest.mark.parametrize(
    ("ours", "vit", "expected", "in_build"),
    [
        ({1}, set(), [NO_OURS, BOTH, BOTH], True),
        (set(), {2}, [BOTH, NO_VIT, BOTH], False),
        ({3}, {3}, [BOTH, BOTH, NEITHER], True),
        ({1, 2, 3}, {1, 2}, [NEITHER, NEITHER, NO_OURS], False),
    ],
)
@pytest.mark.usefixtures("_timed")
def test_a_network_without_room_says_so_in_its_row(
    ours: set[int], vit: set[int], expected: Any, in_build: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_room(monkeypatch, ours, vit, in_build=in_build)
    kept: list[Report] = []
    report = bench_networks(options(), training=True, configs={"toy": TOY}, keep=kept.append)
    assert rows(report) == expected
    assert [group.arithmetic_ratio is not None for group in report.groups] == [group == BOTH for group in expected]
    assert [len(so_far.groups) for so_far in kept] == [1, 2, 3]
    assert [len(so_far.missing) for so_far in kept] == [2, 1, 0]
    print_report(report)
    text = as_markdown(report)
    assert f"illama: {WHY}" in text or not ours
    assert text.count("| out of memory |") == sum(not timed for group in expected for _, timed, _, _ in group)
    assert "NOT FINISHED: still to be measured were toy, 32 px, batch 3, float32." in as_markdown(kept[1])
    written = {path.suffix for path in write_report(report, tmp_path, chart=in_build)}
    assert written == {".md", ".json"} | ({".png"} if in_build and BOTH in expected else set())
    stored = json.loads((tmp_path / "train.json").read_text())
    assert [[row["failure"] for row in group["cases"]] for group in stored["groups"]] == [
        [why for *_, why in group] for group in expected
    ]


@pytest.mark.usefixtures("_timed")
def test_room_for_nothing_is_the_users_to_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    without_room(monkeypatch, {1, 2, 3}, {1, 2, 3}, in_build=False)
    kept: list[Report] = []
    message = r"toy, 32 px, batch 1, float32: illama: out of memory \(.*\) \(and 5 more\); give a smaller --batch or"
    with pytest.raises(UserError, match=message):
        bench_networks(options(), training=False, configs={"toy": TOY}, keep=kept.append)
    assert rows(kept[-1]) == [NEITHER] * 3


@pytest.mark.usefixtures("_timed")
def test_a_chart_of_other_numbers_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.png").touch()
    without_room(monkeypatch, {2}, set(), in_build=True)
    write_report(bench_networks(options(batch=(2,)), training=False, configs={"toy": TOY}), tmp_path)
    assert not (tmp_path / "model.png").exists()


@pytest.mark.usefixtures("_timed")
def test_profile_and_peak_without_room_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_model, "profile", no_room)
    monkeypatch.setattr(bench_model, "peak_bytes", no_room)
    report = bench_networks(options(batch=(1,), profile=True), training=False, configs={"toy": TOY})
    assert rows(report) == [BOTH]
    assert f"profile of illama: {WHY}" in report.groups[0].notes
    assert report.groups[0].cases[0].peak_bytes is None


@pytest.mark.parametrize("failing", ["illama reference", SDPA, "inputs"])
@pytest.mark.usefixtures("_timed")
def test_attention_without_room(failing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if failing == "inputs":
        shapes = ("10000000000,1,5,32", "1,2,5,32")
    else:
        shapes = ("1,2,5,32",)
        if failing == SDPA:
            monkeypatch.setattr(attention.F, "scaled_dot_product_attention", no_room)
        else:
            monkeypatch.setattr(attention, "soft_causal_attention_qkvpacked", no_room)
    asked = AttentionBenchOptions(device="cpu", shape=shapes, rounds=1, backend=("reference",))
    found = [[name for name, timed, _, _ in group if timed] for group in rows(bench_attention(asked))]
    expected = {
        "illama reference": [[SDPA, SDPA_CAUSAL]],
        SDPA: [["illama reference"]],
        "inputs": [[], [SDPA, SDPA_CAUSAL, "illama reference"]],
    }
    assert found == expected[failing]


COMMAND = ("bench", "attention", "--backend", "reference", "--device", "cpu", "--shape", "1,1,9,32", "1,1,8,32")


@pytest.mark.usefixtures("_timed")
def test_the_command_ends_well_if_something_was_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", no_room)
    words = (*COMMAND, "--rounds", 1, "--json", tmp_path / "a.json")
    code, out, err = run(*words)
    assert code == 0, err
    assert f"{SDPA}: {WHY}" in out
    monkeypatch.setattr(attention, "soft_causal_attention_qkvpacked", no_room)
    code, out, err = run(*words, "--out", tmp_path)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("illama: error: (B, h, N, d) = (1, 1, 9, 32), float32: torch SDPA")
    for file in ("attention.json", "a.json"):
        cases = [case for group in json.loads((tmp_path / file).read_text())["groups"] for case in group["cases"]]
        assert [case["failure"] for case in cases] == [WHY] * 6


@pytest.mark.usefixtures("_timed")
def test_a_stream_gets_one_report(capfd: pytest.CaptureFixture[str]) -> None:
    """What is written to a pipe after each group would be several reports."""
    assert main([*COMMAND, "--rounds", "1", "--json", "/dev/stderr"]) == 0
    err = capfd.readouterr().err
    assert len(json.loads(err[err.index("{") :])["groups"]) == 2


@needs_proc
def test_an_interrupted_bench_keeps_what_it_has_measured(tmp_path: Path) -> None:
    """SIGTERM in the second group."""
    words = (*COMMAND, "--no-ceilings", "--seconds", "2", "--out", "out", "--json", "a.json")
    process = subprocess.Popen(
        [sys.executable, "-m", "illama", *words], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    try:
        until = time.monotonic() + 120
        while not (tmp_path / "out" / "attention.json").exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.wait()
    for file in ("out/attention.json", "a.json"):
        report = json.loads((tmp_path / file).read_text())
        assert [group["title"] for group in report["groups"]] == ["(B, h, N, d) = (1, 1, 9, 32), float32"]
        assert all(case["seconds"]["median"] > 0 for case in report["groups"][0]["cases"])
        assert report["groups_not_measured_yet"] == ["(B, h, N, d) = (1, 1, 8, 32), float32"]
    assert "NOT FINISHED" in (tmp_path / "out" / "attention.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["attention.json", "attention.md"]
