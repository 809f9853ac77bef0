"""A run says what it is: recipe, what differs from it, device, precision, attention, batch, steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama import native
from illama.attention import BACKENDS, AttentionRequest
from illama.errors import UserError
from illama.models import ILlama
from illama.recipes import Recipe, load_recipe, plan_batches
from illama.training.run_header import attention_backend, overrides, start_line

CPU = torch.device("cpu")


def line(recipe: Recipe, num_devices: int = 1, **changes: Any) -> str:
    options = {"device": CPU, "precision": "float32", "total_steps": 40, "run_dir": Path("runs/x")} | changes
    return start_line(recipe, plan_batches(recipe, num_devices), **options)


def test_the_whole_line(monkeypatch: pytest.MonkeyPatch) -> None:
    native.keep(False)
    recipe = load_recipe("digits_micro", ["train.accumulation=2", "data.name=folder", "data.path=/my digits"])
    parameters = sum(p.numel() for p in ILlama(recipe.model).parameters())
    assert line(recipe) == (
        "digits_micro (data.name=folder data.path=/my digits train.accumulation=2): "
        f"{parameters / 1e6:.2f} M parameters on cpu ({torch.get_num_threads()} threads) in float32, "
        "attention reference, eager, 40 steps of 64 images "
        "(1 device x 32 x 2 accumulated) -> runs/x"
    )


def test_processes_share_the_batch() -> None:
    text = line(load_recipe("digits_micro"), 4)
    assert f"on 4 processes x cpu ({torch.get_num_threads()} threads) in" in text
    assert "64 images (4 devices x 16 x 1 accumulated)" in text


def test_overrides_can_be_typed_again() -> None:
    given = [
        "seed=3",
        "model.drop_path=0.25",
        "optimizer.clip_grad=null",
        "data.mean=[0.5]",
        "train.compile=true",
        "train.ema_decay=0.9",
    ]
    recipe = load_recipe("digits_micro", given)
    said = overrides(recipe)
    assert load_recipe("digits_micro", said.split(" ")) == recipe
    assert "seed=3" in said
    assert overrides(load_recipe("digits_micro")) == "as packaged"


def test_an_own_recipe_is_compared_with_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: digits_micro\nseed: 9\n")
    assert line(load_recipe(tmp_path / "mine.yaml")).startswith("mine (own recipe): ")


@pytest.mark.parametrize(("switches", "expected"), [([], "eager"), (["train.compile=true"], "compiled")])
def test_compilation(switches: list[str], expected: str) -> None:
    assert f", {expected}, " in line(load_recipe("digits_micro", switches))


@pytest.mark.skipif(native.why_not() is not None, reason="needs compiled kernels")
def test_compiled_kernels_are_for_eager_mode() -> None:
    assert "attention native, eager" in line(load_recipe("imagenet1k_tiny"))
    assert "native" not in line(load_recipe("imagenet1k_tiny", ["train.compile=true"]))


def test_attention_differs_between_training_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    native.keep(False)
    text = line(load_recipe("imagenet1k_tiny"))
    assert "attention reference in training, blocked in evaluation" in text


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [32, 224, 384])
def test_the_backend_is_the_one_that_runs(
    toy: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, precision: Any, training: bool, size: int
) -> None:
    ran: list[str] = []
    for name in BACKENDS:
        original = BACKENDS[name].run

        def noted(request: AttentionRequest, name: str = name, original: Any = original) -> torch.Tensor:
            ran.append(name)
            return original(request)

        monkeypatch.setattr(BACKENDS[name], "run", noted)
    changes = [f"model.img_size={size}", f"model.patch_size={8 if size == 32 else 16}"]
    config = toy(*changes).model
    model = ILlama(config).train(training)
    images = torch.randn(1, config.in_chans, size, size)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        model(images)
    assert ran[0] == attention_backend(config, CPU, precision, training=training)


def test_a_backend_that_cannot_serve_is_refused_at_once(toy: Callable[..., Recipe]) -> None:
    with pytest.raises(UserError, match='"sdpa" cannot serve'):
        attention_backend(toy("model.attention_backend=sdpa").model, CPU, "float32", training=True)
