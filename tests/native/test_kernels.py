"""RMSNorm and SwiGLU's gate in one pass each: numbers, gradients, who is served; and how the kernels are made."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

from illama import UserError, native
from illama.models.layers import RMSNorm, SwiGLU, _gated
from tests.attention.common import assert_as_exact_as_the_reference, random_qkv, random_tables

needed = pytest.mark.skipif(native.why_not() is not None, reason=f"no compiled kernels: {native.why_not()}")
SHAPES = [(3, 5, 8), (1, 1, 1), (2, 197, 192), (40, 33), (7, 1001)]


def errors(found: list[torch.Tensor], truth: list[torch.Tensor]) -> list[float]:
    return [float((mine.double() - true).norm() / true.norm()) for mine, true in zip(found, truth, strict=True)]


def output_and_gradients(function, inputs: list[torch.Tensor], d_out: torch.Tensor) -> list[torch.Tensor]:
    inputs = [t.clone().requires_grad_() for t in inputs]
    out = function(*inputs)
    out.backward(d_out.to(out.dtype))
    return [out.detach(), *(t.grad for t in inputs)]


@needed
@pytest.mark.parametrize("shape", SHAPES)
def test_the_norm_is_as_exact_as_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    norm = RMSNorm(shape[-1])
    inputs, d_out = [torch.randn(shape), torch.rand(shape[-1])], torch.randn(shape)
    truth = output_and_gradients(norm._formula, [t.double() for t in inputs], d_out.double())
    plain = output_and_gradients(norm._formula, inputs, d_out)
    found = output_and_gradients(lambda x, w: native.rms_norm(x, w, norm.eps, norm._formula), inputs, d_out)
    for mine, theirs in zip(errors(found, truth), errors(plain, truth), strict=True):
        assert mine <= 2 * theirs + 2e-7


@needed
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gate_is_as_exact_as_the_formula(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    inputs, d_out = [(4 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)], torch.randn(shape).to(dtype)
    truth = output_and_gradients(_gated, [t.double() for t in inputs], d_out.double())
    plain = output_and_gradients(_gated, inputs, d_out)
    found = output_and_gradients(lambda g, v: native.gate(g, v, _gated), inputs, d_out)
    for mine, theirs in zip(errors(found, truth), errors(plain, truth), strict=True):
        assert mine <= 2 * theirs + torch.finfo(dtype).eps


@needed
def test_in_bfloat16_the_norm_rounds_as_the_formula_does() -> None:
    """Where it rounds is part of the published mathematics; the factor itself may differ in its last digit."""
    x, norm = torch.randn(50, 192).bfloat16(), RMSNorm(192).bfloat16()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        differ = norm(x) != norm._formula(x, norm.weight)
    assert differ.float().mean() < 1e-3


@needed
def test_the_gates_far_ends() -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, -20.0, 0.0, 20.0, 200.0, 1e30, float("inf"), float("nan")])
    one = torch.ones_like(gate)
    found = output_and_gradients(lambda g, v: native.gate(g, v, _gated), [gate, one], one)
    expected = output_and_gradients(_gated, [gate, one], one)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-30, equal_nan=True)
    finite = slice(1, 7)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(mine[finite], theirs[finite], rtol=1e-5, atol=1e-7)


@needed
def test_second_derivatives() -> None:
    norm, swiglu = RMSNorm(8), SwiGLU(8, 12)

    def penalty(on: bool) -> list[torch.Tensor]:
        native._kept[:] = [on]
        torch.manual_seed(0)
        x = torch.randn(4, 8, requires_grad=True)
        (first,) = torch.autograd.grad(swiglu(norm(x)).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), [x, norm.weight, swiglu.fc1.weight]))

    for mine, theirs in zip(penalty(True), penalty(False), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@needed
def test_the_same_bits_on_any_number_of_threads() -> None:
    torch.manual_seed(0)
    x, weight, threads = torch.randn(500, 192), torch.rand(192), torch.get_num_threads()
    norm, found = RMSNorm(192), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found += [
                output_and_gradients(lambda a, w: native.rms_norm(a, w, 1e-6, norm._formula), [x, weight], x)
                + output_and_gradients(lambda g, v: native.gate(g, v, _gated), [x, x], x)
            ]
    finally:
        torch.set_num_threads(threads)
    assert all(map(torch.equal, *found))


@needed
def test_a_profiler_sees_them() -> None:
    norm, swiglu, x = RMSNorm(16), SwiGLU(16, 24), torch.randn(4, 16, requires_grad=True)
    with torch.profiler.profile() as found:
        swiglu(norm(x)).sum().backward()
    names = {event.name for event in found.events() or []}
    assert {f"illama::{name}_{way}" for name in ("rms_norm", "gate") for way in ("forward", "backward")} <= names


def test_who_is_not_served() -> None:
    x = torch.randn(3, 8)
    assert not native.serves(x.double())
    assert not native.serves(x, x.bfloat16())
    assert not native.serves(x.to("meta"))
    assert not native.serves(torch.empty(0, 8))
    with FakeTensorMode():
        assert not native.serves(torch.empty(3, 8))
    torch.func.vmap(lambda row: row if not native.serves(row) else pytest.fail("cannot be transformed"))(x)


def why_not_here() -> str | None:
    """As a fresh process would say."""
    return native._library.__wrapped__()[1]


@needed
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86's instructions")
@pytest.mark.parametrize("without", ["-mno-avx512f", "-mno-avx512f -mno-avx2 -mno-fma"])
def test_narrower_vectors(without: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What processors without AVX-512, and without AVX2, get."""
    monkeypatch.setenv("CC", f"{os.environ.get('CC') or shutil.which('gcc') or 'cc'} {without}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = native._library.__wrapped__()
    assert library[1] is None
    monkeypatch.setattr(native, "_library", lambda: library)
    torch.manual_seed(0)
    for dtype, tokens, width in itertools.product((torch.float32, torch.bfloat16), (5, 65, 197), (24, 64)):
        qkv, rope = random_qkv(1, 2, tokens, width, dtype), random_tables(tokens, width)
        assert_as_exact_as_the_reference(qkv, 0.35, "causal", rope, "native", packed=True)
    test_the_norm_is_as_exact_as_the_formula((40, 33))
    test_the_gate_is_as_exact_as_the_formula((40, 33), torch.bfloat16)


class TestMaking:
    def test_off_means_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ILLAMA_NATIVE", "off")
        native._kept[:] = []
        assert native.kernels() is None
        assert native.why_not() == "ILLAMA_NATIVE=off"
        monkeypatch.setenv("ILLAMA_NATIVE", "maybe")
        with pytest.raises(UserError, match="ILLAMA_NATIVE must be auto or off; got 'maybe'"):
            native.wanted()

    def test_without_a_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CC", raising=False)
        assert why_not_here() == "there is no C compiler (gcc or cc)"
        monkeypatch.setenv("CC", "no-such-compiler")
        assert "no-such-compiler" in (why_not_here() or "")

    def test_a_compiler_that_fails(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        broken = tmp_path / "cc"
        broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "kernels.c:1: error: no" >&2; exit 1\n')
        broken.chmod(0o755)
        monkeypatch.setenv("CC", str(broken))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert why_not_here() == f"{broken} cannot compile them: kernels.c:1: error: no"
        assert not list((tmp_path / "cache").rglob("*.so*"))

    @needed
    def test_made_once_and_what_was_changed_is_made_again(self, tmp_path: Path, monkeypatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert why_not_here() is None
        (made,) = (tmp_path / "illama").iterdir()
        content, when = made.read_bytes(), made.stat().st_mtime_ns
        assert (tmp_path / "illama").stat().st_mode & 0o777 == 0o700
        assert why_not_here() is None
        assert made.stat().st_mtime_ns == when
        made.unlink()  # what is loaded must not be written to
        made.write_bytes(content[: len(content) // 2])
        assert why_not_here() is None
        assert {path.stat().st_size for path in (tmp_path / "illama").iterdir()} >= {len(content)}

    @needed
    def test_a_folder_that_others_may_write_to_is_not_trusted(self, tmp_path: Path, monkeypatch) -> None:
        (tmp_path / "illama").mkdir()
        (tmp_path / "illama").chmod(0o777)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert why_not_here() is None
        assert not list((tmp_path / "illama").iterdir())

    @needed
    def test_a_run_that_began_without_stays_without(self) -> None:
        native.keep(False)
        assert not native.serves(torch.zeros(3, 8))
        native.keep(True)
        assert native.serves(torch.zeros(3, 8))

    def test_a_run_that_began_with_them_is_told_that_there_are_none(self, monkeypatch, caplog) -> None:
        monkeypatch.setattr(native, "_library", lambda: (None, "there is no C compiler (gcc or cc)"))
        native.keep(True)
        assert "began with compiled CPU kernels, and here are none (there is no C compiler" in caplog.text
        assert not native.serves(torch.zeros(3, 8))
