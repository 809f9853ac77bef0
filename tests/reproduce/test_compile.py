"""One compiled step serves all seeds of a row."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.recipes import load_recipe
from illama.training.loop import Run
from tests.reproduce.conftest import TOY


def test_one_compiled_step_serves_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    torch.compiler.reset()
    edits = ("train.compile=true", "model.drop_path=0.1", "augment.mixup=0.1", "schedule.softness.cutoff_epochs=2")
    for seed in range(3):
        recipe = load_recipe("digits_micro", [*TOY, *edits, f"seed={seed}"])
        run = Run(recipe, Path("nowhere"), torch.device("cpu"), None)
        batches = run.parts.train_loader.batches()
        for step in range(run.parts.schedules.total_steps):
            run.state.progress.step = step
            run._step(batches)
        batches.close()
    torch.compiler.reset()
    assert len(graphs) == 1
