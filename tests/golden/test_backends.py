"""The micro models through each attention backend asked for by name."""

from __future__ import annotations

import json

import pytest
import torch

from illama.attention import blocked
from illama.models import ILlama, ModelConfig
from tests.golden.common import STORED_FLOAT32, load, metadata, micro_config, relative_l2, run

SOFTNESS = (0.0, 0.35, 1.0)


def judge(model: ILlama, stored: dict[str, torch.Tensor], prefix: str) -> None:
    """All tokens, logits and gradients; then the logits of a forward pass, whose last block skips what it may."""
    found = run(model, stored["input"].double(), stored["target"])
    expected = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    judged = {item: value for item, value in expected.items() if not item.startswith("attn.")}
    assert {"logits", "loss", "grad_input", "grad.cls_token"} <= set(judged)
    errors = {item: relative_l2(found[item], value) for item, value in judged.items()}
    wrong = {item: e for item, e in errors.items() if e > (STORED_FLOAT32 if ".mlp.fc" in item else 1e-10)}
    assert not wrong
    assert model.only_needed_tokens
    assert relative_l2(model(stored["input"].double()), expected["logits"]) < 1e-10


def micro_model(file: str, softness: float, **edits: object) -> tuple[ILlama, dict[str, torch.Tensor]]:
    stored = load(file)
    model = ILlama(micro_config(file, **edits)).double()
    model.load_state_dict({key[6:]: value for key, value in stored.items() if key.startswith("param.")})
    model.set_softness(softness)
    return model, stored


@pytest.mark.parametrize("softness", SOFTNESS)
@pytest.mark.parametrize("file", ["micro_square.safetensors", "micro_rect.safetensors"])
@pytest.mark.parametrize(("backend", "rows"), [("reference", None), ("blocked", None), ("blocked", 4)])
def test_after_the_softmax(monkeypatch, backend: str, rows: int | None, file: str, softness: float) -> None:
    if rows is not None:  # several blocks of queries, where the micro models' tokens fit one
        monkeypatch.setattr(blocked._Cut, "ROWS", rows)
    judge(*micro_model(file, softness, attention_backend=backend), f"f64/s{softness:g}/")


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_before_the_softmax_at_softness_one(backend: str) -> None:
    """Nothing is masked there: both places of the mask give the published numbers."""
    edits = {"attention_backend": backend, "mask_mode": "pre_softmax"}
    judge(*micro_model("micro_square.safetensors", 1.0, **edits), "f64/s1/")


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_without_a_mask(backend: str) -> None:
    """The VisionLLaMA block, bidirectional, class token first, rotated in two dimensions."""
    file = "visionllama_micro.safetensors"
    stored, names = load(file), json.loads(metadata(file)["names"])
    config: ModelConfig = micro_config(
        file,
        mask="none",
        norm="layer",
        cls_position="first",
        position="rope2d",
        layer_scale=1e-4,
        attention_backend=backend,
    )
    model = ILlama(config).double()
    model.load_state_dict({ours: stored[f"param.{public}"] for public, ours in names.items()})
    assert relative_l2(model(stored["input"].double()), stored["f64/logits"]) < 1e-10
    found = run(model, stored["input"].double(), stored["target"])
    for public, ours in names.items():
        expected, tolerance = stored[f"f64/grad.{public}"], STORED_FLOAT32 if ".mlp." in public else 1e-10
        assert relative_l2(found[f"grad.{ours}"], expected) <= tolerance, public
