"""The network from the inside out: every stored item of the micro models, every parameter's gradient."""

from __future__ import annotations

import json

import pytest
import torch

from illama.models import ILlama, ModelConfig
from illama.models.position import angles_2d
from tests.golden.common import (
    STORED_FLOAT32,
    TOLERANCE,
    load,
    metadata,
    micro_config,
    read_json,
    relative_l2,
    run,
)

FILES = ("micro_square.safetensors", "micro_rect.safetensors")


def tolerance(item: str, dtype: torch.dtype) -> float:
    outputs, gradients = TOLERANCE[dtype]
    if dtype == torch.float64 and ".mlp.fc" in item:
        return STORED_FLOAT32
    return gradients if item.startswith("grad") else outputs


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("softness", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("file", FILES)
def test_every_item_agrees(file: str, softness: float, dtype: torch.dtype) -> None:
    stored = load(file)
    model = ILlama(micro_config(file)).to(dtype)
    model.load_state_dict({key[6:]: value for key, value in stored.items() if key.startswith("param.")})
    model.set_softness(softness)
    found = run(model, stored["input"].to(dtype), stored["target"])

    prefix = f"f64/s{softness:g}/"
    expected = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    gradients = {f"grad.{name}" for name, _ in model.named_parameters()}
    assert gradients <= set(expected), "a parameter without a stored gradient would go unjudged"
    assert set(expected) <= set(found)
    errors = {item: relative_l2(found[item], expected[item]) for item in expected}
    wrong = {item: error for item, error in errors.items() if error > tolerance(item, dtype)}
    assert not wrong


def test_logits_do_not_depend_on_softness_at_depth_one() -> None:
    """The class token's row is complete, so the last block's mask never reaches the logits."""
    model = ILlama(micro_config("micro_square.safetensors", depth=1)).double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    bidirectional, causal = [], []
    for softness, logits in ((1.0, bidirectional), (0.0, causal)):
        model.set_softness(softness)
        logits.append(model(images))
    torch.testing.assert_close(bidirectional, causal, rtol=0, atol=1e-12)


class TestVisionLlama:
    FILE = "visionllama_micro.safetensors"

    def model(self) -> ILlama:
        config = micro_config(
            self.FILE, mask="none", norm="layer", cls_position="first", position="rope2d", layer_scale=1e-4
        )
        return ILlama(config).double()

    def names(self) -> dict[str, str]:
        return json.loads(metadata(self.FILE)["names"])

    def test_every_item_agrees(self) -> None:
        stored, names, model = load(self.FILE), self.names(), self.model()
        model.load_state_dict({ours: stored[f"param.{public}"] for public, ours in names.items()})
        found = run(model, stored["input"], stored["target"])
        wrong = {}
        items = [key.removeprefix("f64/") for key in stored if key.startswith("f64/") and "angles" not in key]
        for item in items:
            ours = f"grad.{names[item[5:]]}" if item.startswith("grad.") else item
            error = relative_l2(found[ours], stored[f"f64/{item}"])
            if error > (STORED_FLOAT32 if ".mlp." in item else 1e-10):
                wrong[item] = error
        assert not wrong
        assert sum(key.startswith("f64/grad.") for key in stored) == len(dict(model.named_parameters()))

    def test_angles(self) -> None:
        stored = load(self.FILE)
        torch.testing.assert_close(angles_2d(self.model().config), stored["f64/angles"], rtol=0, atol=1e-13)
        scaled = angles_2d(
            ModelConfig(
                img_size=448,
                embed_dim=64,
                num_heads=1,
                cls_position="first",
                position="rope2d",
                rope2d_auto_scale=True,
            )
        )
        torch.testing.assert_close(scaled[[0, 1, 2, 3, 4, 784]], stored["f64/angles_as448"], rtol=0, atol=1e-13)


def test_index_lists_the_tolerances_used_here() -> None:
    suggested = read_json("index.json")["suggested_tolerances_rel_l2"]
    assert suggested["float64, everything double"]["all f64 items"] == TOLERANCE[torch.float64][0]
    single = suggested["float32 against f64 items, micro"]
    assert (single["logits, tokens, attn"], single["gradient per tensor, grad_input"]) == TOLERANCE[torch.float32]
