"""`illama info`: what weights are, said and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from illama.checkpoint import Meta, save_weights
from illama.models import ILlama, ModelConfig
from tests.cli.conftest import Run, run
from tests.evaluation.conftest import untrained_digits_run

__all__ = ["run"]


def test_a_run_is_described(run: Run, tmp_path: Path) -> None:
    untrained_digits_run(tmp_path / "run")
    code, out, err = run("info", tmp_path / "run")
    assert (code, err) == (0, "")
    told = dict(line.split("  ", 1) for line in out.splitlines())
    assert told.keys() == {
        *("file", "network", "mask", "image", "parameters", "multiply-adds", "classes", "transform", "origin")
    }
    assert told["origin"].strip().startswith("recipe digits_micro, epoch ")
    assert told["classes"].strip() == "0, 1, 2, 3, 4, ... (10)"


def test_numbers_are_the_networks_own(run: Run, tmp_path: Path) -> None:
    config = ModelConfig(img_size=(8, 16), patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3)
    model = ILlama(config)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), Meta(config=config, classes=("a", "b\x1b[2J", "c")))
    code, out, _ = run("info", tmp_path / "w.safetensors", "--json", tmp_path / "info.json")
    assert code == 0
    assert "8 x 16 px (height x width)" in out
    assert "\x1b" not in out
    values = json.loads((tmp_path / "info.json").read_text())
    assert values["parameters"] == sum(p.numel() for p in model.parameters())
    assert (values["classes"], values["types"], values["recipe"]) == (["a", "b\x1b[2J", "c"], ["float32"], None)


def test_nothing_there_is_one_line(run: Run, tmp_path: Path) -> None:
    code, out, err = run("info", tmp_path / "none")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
