"""What is measured of the machine: other processes, ceilings, memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from illama.bench import machine
from illama.bench.machine import Ceilings, OtherLoad, measure_ceilings, peak_bytes
from illama.device import matmul_rate
from illama.device.matmul_rate import Sampling, seconds_per_call
from tests.bench.conftest import FakeTimer

CPU = torch.device("cpu")


def test_others_are_the_machine_less_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    now = {"wall": 100.0, "own": 5.0}
    monkeypatch.setattr(time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(time, "process_time", lambda: now["own"])
    stat = tmp_path / "stat"

    def machine(busy_s: float, stolen_s: float = 0.0) -> None:
        user, nice, system = (round(busy_s * ticks * share) for share in (0.5, 0.25, 0.25))
        stat.write_text(f"cpu  {user} {nice} {system} 99999 777 0 0 {round(stolen_s * ticks)} 0 0\ncpu0 1 2 3\n")

    watch = OtherLoad(stat)
    machine(40.0)
    before = watch.look()
    now.update(wall=104.0, own=11.0)  # four seconds in which this process kept 1.5 cores busy
    machine(47.0, stolen_s=1.0)  # and the machine, or somebody outside of it, two
    assert watch.since(before) == pytest.approx(0.5)
    machine(44.0)  # clock ticks are coarse: less than this process took is nobody else
    assert watch.since(before) == 0.0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not tell")
def test_this_machine_tells() -> None:
    watch = OtherLoad.here()
    assert watch is not None
    look = watch.look()
    assert look.machine_s > 0
    assert watch.since(look) >= 0


def test_no_proc_means_unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_STAT", tmp_path / "none")
    assert OtherLoad.here() is None


def test_floors_use_the_measured_ceilings() -> None:
    found = Ceilings({"float32": 2e9}, {"float32": ""}, {1000: 50.0, 10_000: 80.0, 100_000: 10.0})
    assert found.bandwidth(500) == 80.0  # a larger buffer was read faster: the ceiling is the best
    assert found.bandwidth(10_000) == 80.0
    assert found.bandwidth(10_001) == 10.0
    assert found.bandwidth(1e9) == 10.0


def test_the_ceiling_is_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_CPU_SHAPES", ((2, 3, 4), (5, 6, 7), (4, 4, 4)))
    monkeypatch.setattr(machine, "_CPU_BUFFERS_MIB", (1, 2))
    monkeypatch.setattr(machine, "timer_for", lambda device: FakeTimer(lambda run: 0.5))
    found = measure_ceilings(CPU, ("float32", "bf16"))
    assert found.matmul_flops_per_s == {"float32": 2 * 5 * 6 * 7 / 0.5, "bf16": 2 * 5 * 6 * 7 / 0.5}
    assert found.matmul["bf16"].endswith("5 x 6 x 7")
    assert found.bytes_per_s_by_buffer_bytes == {1 << 20: 2 << 20, 2 << 20: 4 << 20}


def test_every_way_to_multiply_gives_the_product() -> None:
    a, weight = torch.randn(9, 5), torch.randn(7, 5)
    found = dict(matmul_rate.products(a, weight))
    assert "torch.mm" in found
    for product in found.values():
        torch.testing.assert_close(product(), a @ weight.t())


def test_the_least_disturbed_sample_counts() -> None:
    samples = iter([9.0, 0.5, 0.25, 3.0])  # first the one that says how many calls make a sample
    timer = FakeTimer(lambda run: next(samples))
    assert seconds_per_call(lambda: None, timer, Sampling(sample_s=27.0, samples=3)) == 0.25
    assert [calls for _, calls in timer.asked] == [1, 3, 3, 3]


def test_a_slow_device_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000, 10))
    monkeypatch.setattr(matmul_rate, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    timer = FakeTimer(lambda run: 7.0)
    assert seconds_per_call(lambda: None, timer, Sampling(sample_s=1.0, samples=5, limit_s=25.0)) == 7.0
    assert len(timer.asked) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="the system does not tell")
def test_peak_memory_is_what_a_call_takes() -> None:
    size = 96 << 20

    def take() -> None:
        torch.ones(size // 4)

    taken = peak_bytes(take, CPU)
    assert taken is not None
    assert 0.9 * size < taken < 1.3 * size
    nothing = peak_bytes(lambda: None, CPU)
    assert nothing is not None
    assert nothing < size // 10
