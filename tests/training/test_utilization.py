"""Utilization is needed work over the ceiling; measuring it leaves the run as it was."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from illama.device.matmul_rate import MatmulRate, quick_matmul_rate
from illama.models import ModelConfig
from illama.models.cost import multiply_adds, needed_multiply_adds, training_multiply_adds
from illama.training import utilization
from illama.training.utilization import StepMeter, peak_memory_gb

CPU = torch.device("cpu")
TOY = ModelConfig(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


@pytest.fixture
def ceiling(monkeypatch: pytest.MonkeyPatch) -> float:
    """Of every device, in operations per second."""
    monkeypatch.setattr(utilization, "quick_matmul_rate", lambda device, precision: MatmulRate(1e9, "a guess"))
    return 1e9


@pytest.mark.parametrize("world_size", [1, 3])
def test_share_of_the_ceiling(ceiling: float, world_size: int) -> None:
    found = StepMeter(TOY, CPU, "float32", world_size).summary(600.0)
    needed = 2 * training_multiply_adds(TOY, needed_multiply_adds(TOY, 0.0))
    assert found["mfu"] == pytest.approx(600.0 * needed / (world_size * ceiling))


def test_a_soft_mask_needs_more(ceiling: float) -> None:
    step = StepMeter(TOY, CPU, "float32")
    hard, soft = step.summary(1.0)["mfu"], step.summary(1.0, softness=0.5)["mfu"]
    assert hard is not None
    assert soft is not None
    needed = [training_multiply_adds(TOY, needed_multiply_adds(TOY, softness)) for softness in (0.0, 0.5)]
    assert soft / hard == pytest.approx(needed[1] / needed[0])
    assert soft > hard
    assert multiply_adds(TOY) > needed[1] / 3  # the last block's class token alone stays a saving


def test_patches_that_are_left_out_need_nothing(ceiling: float) -> None:
    """8 of 16 patches: what 8 patches of a wide image would need."""
    step = StepMeter(TOY, CPU, "float32")
    wide = dataclasses.replace(TOY, img_size=(8, 64))
    for softness in (0.0, 0.5):
        assert step.summary(1.0, softness, 8) == StepMeter(wide, CPU, "float32").summary(1.0, softness) | {
            "memory_gb": pytest.approx(step.summary(1.0)["memory_gb"], rel=0.1)
        }
    assert step.summary(1.0, patches=16)["mfu"] == step.summary(1.0)["mfu"]


def test_memory_at_its_peak(ceiling: float) -> None:
    before = peak_memory_gb(CPU)
    assert before is not None
    size = 300 << 20
    taken = torch.ones(size // 4)
    after = StepMeter(TOY, CPU, "float32").summary(1.0)["memory_gb"]
    del taken
    assert after is not None
    assert 0.1 < before <= after < before + 3 * size / 1e9
    resident = torch.ones(int(after * 1e9) // 4)  # as much again as there ever was: the peak must rise
    del resident
    assert (peak_memory_gb(CPU) or 0.0) > after
    assert peak_memory_gb(torch.device("mps")) is None


def test_windows_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert peak_memory_gb(CPU) is None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_measuring_touches_no_generator_and_no_switch(precision: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), torch.get_num_threads(), torch.get_float32_matmul_precision()
    rate = quick_matmul_rate(CPU, precision)  # type: ignore[arg-type]
    assert rate.flops_per_s > 0
    assert rate.how.endswith("1024 x 1024 x 1024")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == before[1:]
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.gpu
def test_on_cuda_the_ceiling_is_no_part_of_the_peak() -> None:
    device = torch.device("cuda")
    state = torch.cuda.get_rng_state(device)
    step = StepMeter(TOY, device, "bf16")
    assert torch.equal(torch.cuda.get_rng_state(device), state)
    held = torch.cuda.memory_allocated(device)
    weights = torch.empty(50 << 20, dtype=torch.uint8, device=device)
    memory = step.summary(1.0)["memory_gb"]
    assert memory == pytest.approx((held + weights.numel()) / 1e9)
