"""`bench attention`: which backends are measured, which are not and why, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from illama.attention import BACKENDS
from illama.bench import attention
from illama.bench.attention import SDPA, SDPA_CAUSAL, bench_attention
from illama.bench.machine import Ceilings
from illama.bench.options import AttentionBenchOptions
from illama.errors import UserError
from tests.bench.conftest import FakeTimer


def options(**changes: Any) -> AttentionBenchOptions:
    return AttentionBenchOptions(**{"device": "cpu", "shape": ("1,2,5,32",), "rounds": 1} | changes)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch, known_ceilings: Ceilings) -> FakeTimer:
    fake = FakeTimer(lambda run: 0.5)
    monkeypatch.setattr(attention, "timer_for", lambda device: fake)
    return fake


def test_every_backend_is_measured_or_says_why_not(timer: FakeTimer) -> None:
    report = bench_attention(options())
    (group,) = report.groups
    names = [row.name for row in group.cases]
    assert names[:2] == [SDPA, SDPA_CAUSAL]
    assert "illama reference" in names
    for backend in BACKENDS:
        told = [note for note in group.notes if f'"{backend}"' in note]
        assert (f"illama {backend}" in names) != bool(told), backend
    assert "it cannot mask after the softmax" in " ".join(group.notes)
    assert group.cases[0].ratio is None
    assert group.cases[-1].ratio is not None


@pytest.mark.parametrize(("backward", "passes"), [(False, 1), (True, 3)])
def test_needed_operations(timer: FakeTimer, backward: bool, passes: int) -> None:
    pairs, visible, product = 5 * 5, 5 * 6 // 2, 2 * 1 * 2 * 32
    expected = {SDPA: 2 * pairs, SDPA_CAUSAL: 2 * visible, "illama reference": pairs + visible}
    report = bench_attention(options(backend=("reference",), backward=backward))
    for row in report.groups[0].cases:
        assert row.needed_flops_per_s == pytest.approx(passes * product * expected[row.name] / 0.5)
    soft = bench_attention(options(backend=("reference",), backward=backward, softness=0.5))
    assert soft.groups[0].cases[2].needed_flops_per_s == pytest.approx(passes * product * 2 * pairs / 0.5)


def test_backward_means_gradients_of_all_three(timer: FakeTimer) -> None:
    bench_attention(options(backward=True))
    for run, _ in timer.asked:
        gradient = run()
        assert isinstance(gradient, torch.Tensor)
        assert gradient.shape == (1, 5, 3, 2, 32)
        assert all(part.abs().sum() > 0 for part in gradient.unbind(2))


def test_shapes_and_precisions_are_groups(timer: FakeTimer) -> None:
    report = bench_attention(options(shape=("1,1,4,32", "2,1,3,32"), dtype=("float32", "bf16")))
    assert [group.title for group in report.groups] == [
        "(B, h, N, d) = (1, 1, 4, 32), float32",
        "(B, h, N, d) = (2, 1, 3, 32), float32",
        "(B, h, N, d) = (1, 1, 4, 32), bf16",
        "(B, h, N, d) = (2, 1, 3, 32), bf16",
    ]


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean reference"):
        bench_attention(options(backend=("referense",)))


def test_a_backend_named_for_what_it_cannot_do_is_refused_before_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "measure_groups", None)
    with pytest.raises(UserError, match=r"--backend sdpa cannot serve \(1, 2, 5, 32\) in bf16: it cannot mask after"):
        bench_attention(options(backend=("reference", "sdpa"), dtype=("bf16",)))


def test_all_beside_a_name_leaves_out_what_cannot_serve(timer: FakeTimer) -> None:
    (group,) = bench_attention(options(backend=("sdpa", "all"))).groups
    assert "illama reference" in [row.name for row in group.cases]
    assert '"sdpa" cannot serve' in " ".join(group.notes)


@pytest.mark.parametrize("shape", ["1,2,3", "1,2,3,x", "1,0,3,4", "1,2,3,-4", ""])
def test_a_shape_is_four_numbers(shape: str) -> None:
    with pytest.raises(UserError, match="not four positive numbers"):
        options(shape=(shape,))
