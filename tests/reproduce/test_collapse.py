"""What the class token sees, of toy runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

from illama.analysis import class_attention, image_gradient
from illama.errors import UserError
from illama.models import ROADMAP, ILlama
from illama.recipes import load_recipe
from illama.report import Bullets, Figure, Table
from illama.reproduce.collapse import CollapseRow, collapse_blocks
from illama.training import train
from illama.weights import load_model

TOY = (
    "model.img_size=[8, 12]",
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "schedule.softness.cutoff_epochs=0",
    "data.max_train_images=64",
    "data.max_eval_images=40",
    "train.total_batch=32",
    "optimizer.lr_batch=32",
)


def train_two_steps(folder: Path, row: str, mask_mode: str, seed: int = 0) -> Path:
    edits = [f"model.{key}={value}" for key, value in (ROADMAP[row] | {"mask_mode": mask_mode}).items()]
    run = folder / f"{row}_{mask_mode}_{seed}"
    train(load_recipe("digits_micro", [*TOY, *edits, f"seed={seed}"]), run)
    return run


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[CollapseRow]:
    folder = tmp_path_factory.mktemp("collapse")

    def row(label: str, name: str, mode: str, seeds: int = 1) -> CollapseRow:
        return CollapseRow(label, name, mode, tuple(train_two_steps(folder, name, mode, s) for s in range(seeds)))

    return [
        row("class token first", "llama_attention", "pre_softmax"),
        row("class token first", "llama_attention", "post_softmax"),
        row("PS [cls]", "ps_cls", "post_softmax", seeds=2),
    ]


def some_images() -> torch.Tensor:
    return torch.randn(6, 1, 8, 12)


def test_blocks_of_toy_runs(rows: list[CollapseRow]) -> None:
    images, state = some_images(), torch.get_rng_state()
    verdicts, table, figure = collapse_blocks(rows, images)
    assert torch.equal(torch.get_rng_state(), state), "nobody's random numbers are used up"
    assert isinstance(verdicts, Bullets)
    assert isinstance(table, Table)
    assert isinstance(figure, Figure)

    blind, trace, cured = table.rows
    assert blind == ("class token first", "`pre_softmax`", *["0 exactly"] * 4, "100.0 %")
    assert "0 exactly" not in trace
    assert all("\N{PLUS-MINUS SIGN}" in cell for cell in cured[2:]), "two seeds have a spread"

    strictly, masked, cures = verdicts.items
    assert "this holds exactly" in strictly
    assert "is not blind in the strict sense" in masked
    assert "times the cures' mean" in masked
    assert "PS [cls] under `post_softmax`" in cures

    ET.fromstring(figure.svg)
    assert collapse_blocks(rows, images)[2] == figure


def test_numbers_are_those_of_the_last_checkpoint_and_of_the_seed(rows: list[CollapseRow]) -> None:
    trace, images = rows[1], some_images().double()
    _, table, _ = collapse_blocks([trace], images)
    trained, meta = load_model(trace.runs[0])
    torch.manual_seed(0)
    untrained = ILlama(meta.config)
    gradients = [image_gradient(model.double(), images) for model in (untrained, trained)]
    assert [float(cell) for cell in table.rows[0][2:4]] == pytest.approx(gradients, rel=0.06)
    mass = float(class_attention(trained, images).sum(-1).mean())
    assert float(table.rows[0][-1].removesuffix(" %")) == pytest.approx(100 * mass, abs=0.051)


def test_softness_zero_whatever_the_run_ended_with(rows: list[CollapseRow], tmp_path: Path) -> None:
    soft = ["schedule.softness.value=1", "schedule.softness.cutoff_epochs=1", "schedule.softness.shape=constant"]
    edits = [
        f"model.{key}={value}" for key, value in (ROADMAP["llama_attention"] | {"mask_mode": "pre_softmax"}).items()
    ]
    train(load_recipe("digits_micro", [*TOY, *edits, *soft]), tmp_path / "soft")
    assert float(load_model(tmp_path / "soft")[0].softness) == 1
    row = CollapseRow("soft", "llama_attention", "pre_softmax", (tmp_path / "soft",))
    assert collapse_blocks([row], some_images())[1].rows[0][2:6] == ("0 exactly",) * 4


def test_refusals(rows: list[CollapseRow]) -> None:
    images = some_images()
    with pytest.raises(UserError, match="at least one row"):
        collapse_blocks([], images)
    with pytest.raises(UserError, match="has no finished run"):
        collapse_blocks([CollapseRow("PS [cls]", "ps_cls", "pre_softmax", ())], images)
    with pytest.raises(UserError, match=r"no run of modified_causal .* model\.mask differs"):
        collapse_blocks([CollapseRow("modified", "modified_causal", "pre_softmax", rows[0].runs)], images)
    with pytest.raises(UserError, match="at least two images"):
        collapse_blocks(rows[:1], images[:1])
