"""Calls in CUDA graphs: what is captured and when, what is not and how that is told, and the time of one call."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from illama.bench import attention
from illama.bench.attention import SDPA, SDPA_CAUSAL, bench_attention
from illama.bench.interleave import GRAPH_CALLS, GRAPH_S, ROUND_S, Case, Effort, measure
from illama.bench.machine import Ceilings
from illama.bench.options import AttentionBenchOptions
from illama.bench.report import as_markdown, print_report
from illama.device import timers
from illama.device.timers import CannotCapture, CudaGraphs, graphs_for, timer_for
from tests.bench.conftest import FakeTimer

CUDA = torch.device("cuda")


class Replay:
    """Makes its calls again."""

    def __init__(self, run: Callable[[], object], calls: int) -> None:
        self.run, self.calls = run, calls

    def __call__(self) -> None:
        for _ in range(self.calls):
            self.run()


class FakeGraphs:
    """Captures everything but what it is told not to."""

    def __init__(self, refused: dict[Callable[[], object], Exception] | None = None) -> None:
        self.refused = refused or {}
        self.captured: list[tuple[Callable[[], object], int]] = []

    def capture(self, run: Callable[[], object], calls: int) -> Replay:
        if run in self.refused:
            raise self.refused[run]
        self.captured.append((run, calls))
        return Replay(run, calls)


def test_the_time_of_a_call_is_that_of_a_graph_over_its_calls() -> None:
    """Called from the host a case takes ten times as long."""
    timer = FakeTimer(lambda run: 1e-5 * run.calls if isinstance(run, Replay) else 1e-4)
    cases = [Case("one", lambda: None), Case("other", lambda: None)]
    graphs = FakeGraphs()
    found = measure(cases, Effort(rounds=3), timer=timer, graphs=graphs)
    assert graphs.captured == [(case.run, GRAPH_CALLS) for case in cases]
    assert found.seconds == {name: pytest.approx([1e-5] * 3) for name in ("one", "other")}
    assert found.first_call_s["one"] == pytest.approx(1e-4)  # which may compile
    assert found.calls["one"] == pytest.approx(ROUND_S / 2 / 1e-5, abs=GRAPH_CALLS)
    assert found.eager == {}
    rounds = timer.asked[-6:]
    assert all(isinstance(run, Replay) for run, _ in rounds)
    assert {runs * GRAPH_CALLS for _, runs in rounds} == {found.calls["one"]}


@pytest.mark.parametrize(("call_s", "calls"), [(1e-6, GRAPH_CALLS), (GRAPH_S / 4, 4), (GRAPH_S, 1), (10.0, 1)])
def test_a_graph_of_long_calls_holds_few(call_s: float, calls: int) -> None:
    graphs = FakeGraphs()
    timer = FakeTimer(lambda run: call_s * getattr(run, "calls", 1))
    found = measure([Case("one", lambda: None)], Effort(rounds=1), timer=timer, graphs=graphs)
    assert [number for _, number in graphs.captured] == [calls]
    assert found.seconds["one"] == pytest.approx([call_s])


def test_what_cannot_be_captured_is_called_and_marked() -> None:
    cases = [Case("waits", lambda: 1), Case("fits", lambda: 2), Case("large", lambda: 3)]
    refused = {cases[0].run: CannotCapture("it waits"), cases[2].run: torch.OutOfMemoryError("out of memory")}
    timer = FakeTimer(lambda run: 1e-3 * getattr(run, "calls", 2))
    found = measure(cases, Effort(rounds=2), timer=timer, graphs=FakeGraphs(refused))
    assert found.eager == {"waits": "it waits"}
    assert found.failures == {"large": "out of memory"}
    assert found.seconds == {"waits": pytest.approx([2e-3] * 2), "fits": pytest.approx([1e-3] * 2)}
    assert found.to_dict()["timed_eagerly"] == {"waits": "it waits"}


@pytest.mark.parametrize("backward", [False, True])
def test_attention_is_captured_where_the_device_has_graphs(
    backward: bool, known_ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the report tells which rows are something else."""
    asked: list[torch.device] = []

    class AllButOne(FakeGraphs):
        def capture(self, run: Callable[[], object], calls: int) -> Replay:
            if len(self.captured) == 2:
                raise CannotCapture("it waits for the device")
            return super().capture(run, calls)

    graphs = AllButOne()
    monkeypatch.setattr(attention, "graphs_for", lambda device: asked.append(device) or graphs)
    monkeypatch.setattr(attention, "timer_for", lambda device: FakeTimer(lambda run: 1e-3 * getattr(run, "calls", 2)))
    options = AttentionBenchOptions(
        device="cpu", shape=("1,1,5,32",), rounds=1, backend=("reference",), backward=backward
    )
    report = bench_attention(options)
    assert set(asked) == {torch.device("cpu")}
    assert [(row.name, row.timed_eagerly) for row in report.groups[0].cases] == [
        (SDPA, False),
        (SDPA_CAUSAL, False),
        ("illama reference", True),
    ]
    text = as_markdown(report)
    assert "| illama reference (timed eagerly) |" in text
    assert "* illama reference: timed eagerly, with what the host does: it waits for the device" in text
    assert "captured in a CUDA graph" in text
    print_report(report)
    assert re.search(r"eagerly\)", capsys.readouterr().out), "in the row's name, maybe on two lines"
    assert json.dumps(report.to_dict()).count('"timed_eagerly": true') == 1


def test_graphs_are_chosen_by_the_device() -> None:
    assert isinstance(graphs_for(CUDA), CudaGraphs)
    assert graphs_for(torch.device("cpu")) is None
    assert graphs_for(torch.device("mps")) is None


class FakeCuda:
    """Stands for torch.cuda and notes what happens in which order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.mode: Any = 1
        self.CUDAGraph = lambda: SimpleNamespace(replay=lambda: self.told.append("replay"))

    def Stream(self) -> Any:  # noqa: N802 - torch's name
        return SimpleNamespace(name="side", wait_stream=lambda other: self.told.append(f"side waits for {other.name}"))

    def current_stream(self) -> Any:
        return SimpleNamespace(name="main", wait_stream=lambda other: self.told.append(f"main waits for {other.name}"))

    def get_sync_debug_mode(self) -> Any:
        return self.mode

    def set_sync_debug_mode(self, mode: Any) -> None:
        self.mode = mode

    def synchronize(self) -> None:
        self.told.append("wait")

    @contextlib.contextmanager
    def inside(self, where: str) -> Iterator[None]:
        self.told.append(f"begin {where}")
        yield
        self.told.append(f"end {where}")

    def device(self, device: torch.device) -> Any:
        return contextlib.nullcontext()

    def stream(self, stream: Any) -> Any:
        return self.inside(stream.name)

    def graph(self, graph: Any) -> Any:
        return self.inside("graph")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(timers, "torch", SimpleNamespace(cuda=fake))
    return fake


def test_capturing_in_order(cuda: FakeCuda) -> None:
    """Warm-up on another stream, where waiting for the device is an error; then the calls in a graph."""
    replay = CudaGraphs(CUDA).capture(lambda: cuda.told.append(f"call, {cuda.mode}"), 2)
    warm = ["side waits for main", "begin side", *["call, error"] * timers.GRAPH_WARMUP_CALLS, "end side"]
    graph = ["begin graph", "call, 1", "call, 1", "end graph", "replay", "wait"]
    assert cuda.told == [*warm, "main waits for side", "wait", *graph]
    cuda.told.clear()
    replay()
    assert cuda.told == ["replay"]


@pytest.mark.parametrize(
    ("in_graph", "error", "expected"),
    [
        (False, RuntimeError("called a synchronizing CUDA operation"), CannotCapture("it waits for the device")),
        (False, torch.OutOfMemoryError("CUDA out of memory"), torch.OutOfMemoryError("CUDA out of memory")),
        (False, RuntimeError("a bug"), RuntimeError("a bug")),
        (True, RuntimeError("CUDA error: not permitted\nmore"), CannotCapture("CUDA error: not permitted")),
    ],
)
def test_what_ends_a_capture(in_graph: bool, error: Exception, expected: Exception, cuda: FakeCuda) -> None:
    def run() -> None:
        if in_graph == ("begin graph" in cuda.told):
            raise error

    with pytest.raises(type(expected)) as raised:
        CudaGraphs(CUDA).capture(run, 2)
    assert (type(raised.value), str(raised.value)) == (type(expected), str(expected))
    assert cuda.mode == 1


@pytest.mark.gpu
def test_on_cuda_a_graph_computes_forward_and_gradients_again() -> None:
    weight = torch.randn(64, 64, device=CUDA, requires_grad=True)
    rows = torch.randn(8, 64, device=CUDA)
    found: list[torch.Tensor] = []
    run = lambda: found.append(torch.autograd.grad((rows @ weight).square().sum(), weight)[0])  # noqa: E731
    replay = CudaGraphs(CUDA).capture(run, 2)
    rows.copy_(torch.randn(8, 64, device=CUDA))
    replay()
    torch.cuda.synchronize()
    expected = torch.autograd.grad((rows @ weight).square().sum(), weight)[0]
    for captured in found[-2:]:
        torch.testing.assert_close(captured, expected)
    assert timer_for(CUDA).seconds(replay, 3) > 0


@pytest.mark.gpu
def test_on_cuda_what_cannot_be_captured_breaks_nothing() -> None:
    value = torch.ones(1, device=CUDA)
    with pytest.raises(CannotCapture, match="it waits for the device"):
        CudaGraphs(CUDA).capture(value.item, 2)
    assert torch.cuda.get_sync_debug_mode() == 0
    torch.randn(3, device=CUDA).sum().item()
    CudaGraphs(CUDA).capture(lambda: value + 1, 2)()


@pytest.mark.gpu
@pytest.mark.parametrize("backward", [False, True])
def test_on_cuda_every_backend_is_captured(
    backward: bool, known_ceilings: Ceilings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = AttentionBenchOptions(device="cuda", shape=("2,3,65,64",), dtype=("bf16",), rounds=1, backward=backward)
    (group,) = bench_attention(asked).groups
    assert {row.name: row.failure for row in group.cases if row.failure is not None} == {}
    assert group.rounds.eager == {}
