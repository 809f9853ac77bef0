"""Forward pass and loss as one function: compiled as one graph, on a GPU without a wait in the step."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama import UserError, load_recipe, train
from illama.checkpoint import Checkpoint, Meta, load_checkpoint
from illama.models import linear
from illama.recipes import Recipe
from illama.training.loop import Run
from illama.training.objective import build_objective
from illama.training.state import TrainState

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor on the CPU needs a C++ compiler")
def test_a_compiled_run_is_the_eager_run(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    """While the softness moves; the graph has no break, or compiling would raise."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    weights = []
    for compiled in ("false", "true"):  # compilers draw other random numbers, so nothing is dropped here
        train(toy("model.drop_path=0", f"train.compile={compiled}"), tmp_path / compiled, device="cpu")
        last = load_checkpoint(tmp_path / compiled, "last")
        assert last is not None
        weights.append(last.model_state)
    for name, eager in weights[0].items():
        torch.testing.assert_close(
            weights[1][name], eager, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
        )
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_cuda_graphs_need_compile_and_cuda(toy: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match=r"train.cuda_graphs.*train.compile=true"):
        load_recipe("digits_micro", ["train.cuda_graphs=true"])
    with pytest.raises(UserError, match=r"needs one process on CUDA, this is cpu; give train.cuda_graphs=false"):
        build_objective(
            torch.nn.Identity(),
            torch.nn.functional.cross_entropy,
            torch.device("cpu"),
            "float32",
            compiled=True,
            cuda_graphs=True,
        )


def test_a_continued_run_keeps_its_matrix_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN and MKL round differently, so the library is part of what a checkpoint restores."""
    monkeypatch.delenv(linear.ENVIRONMENT, raising=False)
    monkeypatch.setattr(linear, "_kept", [])
    monkeypatch.setattr(linear, "_faster_kernel", lambda: "onednn")
    model = torch.nn.Linear(2, 2)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), None, torch.device("cpu"))
    training_state = state.to_dict()
    assert training_state["linear_kernel"] == "onednn"
    config = load_recipe("digits_micro").model
    saved = Checkpoint(Path(), state.weights(), training_state, Meta(config=config))
    state.load(dataclasses.replace(saved, training_state=training_state | {"linear_kernel": "mkl"}))
    assert linear.linear_kernel() == "mkl"
    state.load(saved)
    assert linear.linear_kernel() == "onednn"


@needs_cuda
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_no_step_waits_for_the_device(
    compiled: str, toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second step on, between log points, CUDA calls that make the host wait are errors."""
    original = Run._step

    def strict(self: Run, batches: Any) -> float:
        if self.state.progress.step == 0:  # compiles, allocates
            return original(self, batches)
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Run, "_step", strict)
    train(toy(f"train.compile={compiled}", "train.precision=bf16"), tmp_path / "run", device="cuda")


@needs_cuda
def test_cuda_graphs_compute_the_same(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    results = [
        train(toy("train.compile=true", f"train.cuda_graphs={graphs}"), tmp_path / graphs, device="cuda")
        for graphs in ("false", "true")
    ]
    assert results[0].top1 == pytest.approx(results[1].top1, abs=5.0)
