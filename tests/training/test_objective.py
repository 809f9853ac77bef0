"""Forward pass and loss as one function: compiled as one graph, on a GPU without a wait in the step."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama import UserError, load_recipe, native, train
from illama.attention import AttentionRequest, triton
from illama.checkpoint import Checkpoint, Meta, load_checkpoint
from illama.device import linear
from illama.recipes import Recipe
from illama.training import loop
from illama.training.loop import Run
from illama.training.objective import build_objective
from illama.training.state import TrainState
from tests.runs import same_weights
from tests.training.conftest import ON_CUDA


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
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "of the loss, and of evaluations"


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


def test_gradients_of_replayed_graphs_stay_in_memory_of_their_own(
    toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zeros that stay and are added to, where a graph's next replay would write over what None takes over."""
    recipe = toy("train.accumulation=2", "optimizer.clip_grad=1.0", "train.ema_decay=0.9")
    train(recipe, tmp_path / "freed", device="cpu")
    build, places, step = loop.build_objective, [], Run._step

    def with_graphs(*arguments: Any, **options: Any) -> Any:
        objective = build(*arguments, **options)
        objective._cuda_graphs = True
        return objective

    def watched(self: Run, batches: Any) -> float:
        places.append([p.grad.data_ptr() for p in self.parts.model.parameters() if p.grad is not None])
        return step(self, batches)

    monkeypatch.setattr(loop, "build_objective", with_graphs)
    monkeypatch.setattr(Run, "_step", watched)
    train(recipe, tmp_path / "kept", device="cpu")
    assert places[0]
    assert places == [places[0]] * len(places)
    for file in ("model.safetensors", "ema.safetensors"):
        assert same_weights(tmp_path / "freed", tmp_path / "kept", file=file)


def test_a_continued_run_keeps_what_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other libraries and kernels round differently, so they are part of what a checkpoint restores."""
    monkeypatch.delenv(linear.ENVIRONMENT, raising=False)
    monkeypatch.setattr(linear, "_chosen", {("forward", False, True): "onednn"})
    monkeypatch.setattr(native, "_kept", [False])
    model = torch.nn.Linear(2, 2)
    state = TrainState(model, torch.optim.AdamW(model.parameters()), None, torch.device("cpu"))
    training_state = state.to_dict()
    assert training_state["linear_kernel"] == {"forward, few rows, wide": "onednn"}
    assert training_state["native"] is False
    config = load_recipe("digits_micro").model
    saved = Checkpoint(Path(), state.weights(), training_state, Meta(config=config))

    def load(**changes: object) -> None:
        state.load(dataclasses.replace(saved, training_state=training_state | changes))

    load(linear_kernel="mkl", native=True)  # one name for all is what earlier versions saved
    assert linear.linear_kernels() == dict.fromkeys(linear.KINDS.values(), "mkl")
    assert (native.kernels() is None) == (native.why_not() is not None)
    load(native=None)
    assert linear.linear_kernels() == {"forward, few rows, wide": "onednn"}
    assert native.kernels() is None


def test_toy_networks_on_cuda_reach_the_kernels(toy: Callable[..., Recipe]) -> None:
    config = toy(*ON_CUDA).model
    tokens = torch.zeros(1, config.num_heads, 17, config.head_dim, dtype=torch.bfloat16)
    request = AttentionRequest(tokens, tokens, tokens, 0.5, config.mask, config.mask_mode, 1.0, None, None, 0)
    assert triton._why_not_this(request) is None


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("more", [(), ("optimizer.name=muon", "schedule.patch_drop={rate: 0.5, cutoff_epochs: 3}")])
def test_no_step_waits_for_the_device(
    more: tuple[str, ...],
    compiled: str,
    toy: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
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
    recipe = toy(*ON_CUDA, f"train.compile={compiled}", "train.precision=bf16", *more)
    train(recipe, tmp_path / "run", device="cuda")


@pytest.mark.gpu
def test_cuda_graphs_compute_the_same(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    results = [
        train(toy(*ON_CUDA, "train.compile=true", *more), tmp_path / str(len(more)), device="cuda")
        for more in ((), ("train.cuda_graphs=true",), ("train.cuda_graphs=true", "train.accumulation=2"))
    ]
    assert results[0].scores["top1"] == pytest.approx(results[2].scores["top1"], abs=5.0)
    assert results[0].scores["top1"] == pytest.approx(results[1].scores["top1"], abs=5.0)
