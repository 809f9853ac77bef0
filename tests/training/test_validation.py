"""Evaluations on the way: compiled where the recipe compiles, one graph for every softness."""

from __future__ import annotations

import pytest
import torch

from illama import load_recipe
from illama.data import EvalLoader, EvalTransform, open_source
from illama.models import ILlama, ModelConfig
from illama.tasks import TASKS
from illama.training.state import WeightAverage
from illama.training.validation import Validation

BATCH = 100  # of 360 images: the last one has 60


def test_whole_batches_share_one_compiled_graph_for_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """And give what eager ones give, at the softness in force, at softness 0 and for the averaged weights."""
    graphs, calls = [], []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(graph)
        return lambda *inputs: calls.append(1) or graph(*inputs)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **how: compile_(model, backend=backend, **how))
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = ILlama(
        ModelConfig(img_size=32, patch_size=8, in_chans=1, embed_dim=16, num_heads=2, depth=2, num_classes=10)
    )
    average = WeightAverage(model, 0.9)
    transform = EvalTransform((32, 32), mean=(0.5,), std=(0.25,), in_chans=1)
    loader = EvalLoader(
        open_source(load_recipe("digits_micro").data, "test", in_chans=1), transform, BATCH, "cpu", workers=0
    )
    task, score, records = TASKS["classification"].load(), TASKS["classification"].score, []
    for compiled in (False, True):
        validation = Validation(task, score, loader, torch.device("cpu"), "float32", compiled=compiled)
        for softness in (0.5, 0.0):
            model.set_softness(softness)
            records.append(validation(model, average, step=1, epoch=1))
    eager, compiled_ = records[:2], records[2:]
    assert len(graphs) == 2, "the network and its average"
    assert len(calls) == 3 * (3 + 2), "three whole batches; the last one is not compiled"
    for one, other in zip(eager, compiled_, strict=True):
        assert one.keys() == other.keys()
        assert [one[key] for key in ("top1", "top1_causal", "ema_top1")] == [
            other[key] for key in ("top1", "top1_causal", "ema_top1")
        ]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
