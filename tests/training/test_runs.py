"""`illama runs`: every state told from the files alone, whatever is in them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.checkpoint import Meta, keep_checkpoint, kept_tag, save_checkpoint
from illama.errors import UserError
from illama.recipes import Recipe, load_recipe
from illama.system.lock import RunLock
from illama.training.run_folder import write_run_folder
from illama.training.runs import RunStatus, find_runs, read_run
from tests.training.conftest import TOY

STEPS_PER_EPOCH = 5
MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRun:
    """Writes a run of the toy recipe (3 epochs of 5 steps) as the loop leaves it after some epochs."""

    def make(
        name: str, epochs: int, *overrides: str, log_epochs: int | None = None, recipe: Recipe | None = None
    ) -> Path:
        run = tmp_path / name
        words = ["train", "digits_micro", *TOY, *overrides, "--out", str(run)]
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/illama", *words])
        recipe = recipe or load_recipe("digits_micro", [*TOY, *overrides])
        write_run_folder(run, recipe, ("a", "b"), torch.device("cpu"))
        write_log(run, epochs if log_epochs is None else log_epochs)
        for done in range(1, epochs + 1):
            meta = Meta(config=recipe.model, step=done * STEPS_PER_EPOCH, epoch=done)
            save_checkpoint(run, "last", model_state={"w": torch.zeros(3)}, training_state={}, meta=meta)
        return run

    return make


def write_log(run: Path, epochs: int, more: str = "") -> None:
    lines: list[dict[str, Any]] = []
    for epoch in range(1, epochs + 1):
        step = epoch * STEPS_PER_EPOCH
        lines += [{"kind": "train", "step": at, "epoch": at / STEPS_PER_EPOCH} for at in range(step - 4, step + 1, 2)]
        accuracy = {1: 40.0, 2: 90.0, 3: 80.5}[epoch]
        soft = {"softness": 0.5 if epoch == 1 else 0.0, "top1": accuracy + 9 * (epoch == 1), "top1_causal": accuracy}
        lines.append({"kind": "eval", "step": step, "epoch": epoch, **soft})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + more)


def test_a_finished_run(make_run: MakeRun) -> None:
    found = read_run(make_run("x", 3))
    assert (found.state, found.step, found.total_steps) == ("finished", 15, 15)
    assert (found.epoch, found.epochs) == (3, 3)
    assert (found.best, found.last, found.last_softness) == (90.0, 80.5, 0.0)
    assert found.checkpoints == ("last", "previous")
    assert found.command is None
    assert found.about is None
    assert found.age_s is not None
    assert found.recipe == "digits_micro"
    assert {f"{change.key}={change.new}" for change in found.changes or ()} >= {"model.depth=2", "schedule.epochs=3"}


def test_a_stopped_run_says_how_to_go_on(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The checkpoint counts, not the log, of which a crash loses what came after it."""
    run = make_run("with blank", 2, "optimizer.lr=1e-4", log_epochs=3)
    found = read_run(run)
    assert (found.state, found.step, found.total_steps, found.epoch) == ("stopped", 10, 15, 2)
    assert found.command == f"illama train digits_micro {' '.join(TOY)} optimizer.lr=1e-4 --out '{run}'"
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    assert read_run(run).command == f"cd {here} && {found.command}"


def test_data_that_is_elsewhere_now_is_asked_for(make_run: MakeRun, tmp_path: Path) -> None:
    """The command that began the run would not find it, and neither would it once the recipe knows better."""
    here, there = tmp_path / "here", tmp_path / "there"
    run = make_run("x", 1, "data.name=folder", f"data.path={here}")
    own = f"illama train {run}/recipe.yaml --out {run}"
    assert read_run(run).command == f"{own} --data WHERE_IT_IS_NOW"
    here.mkdir()
    assert f"data.path={here}" in str(read_run(run).command)
    here.rename(there)
    recipe = load_recipe(run / "recipe.yaml")
    (run / "recipe.yaml").write_text(recipe.with_data_path(str(there)).to_yaml())
    assert read_run(run).command == own


def test_a_folder_that_is_gone_needs_no_visit(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    run = make_run("x", 1)
    monkeypatch.chdir(tmp_path)
    assert str(read_run(run).command).startswith(f"cd {tmp_path / 'away'} && ")
    (tmp_path / "away").rmdir()
    assert read_run(run).command == f"illama train {run}/recipe.yaml --out {run}"


@pytest.mark.parametrize(
    ("processes", "here", "begin"),
    [(8, 8, "illama launch --nproc-per-node 8 train"), (32, 8, "illama launch --nnodes 4 --nproc-per-node 8 train")],
)
def test_a_run_of_several_processes(
    processes: int, here: int, begin: str, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert str(read_run(make_run("x", 1)).command).startswith(begin)


@pytest.mark.parametrize("command", [["script.py"], ["/bin/illama", "eval", "x"], [], None, {}])
def test_a_run_that_no_command_began(command: object, make_run: MakeRun) -> None:
    run = make_run("x", 1)
    (run / "environment.json").write_text(json.dumps({"command": command}))
    assert read_run(run).command == f"illama train {run}/recipe.yaml --out {run}"


def test_a_running_run_is_as_far_as_its_log(make_run: MakeRun) -> None:
    run = make_run("x", 1, log_epochs=2)
    with RunLock(run):
        found = read_run(run)
    assert (found.state, found.step, found.epoch) == ("running", 10, 2)
    assert f"process {os.getpid()} on" in str(found.about)
    assert read_run(run).state == "stopped"


def test_a_run_that_saved_nothing(make_run: MakeRun) -> None:
    found = read_run(make_run("x", 0))
    assert (found.state, found.step, found.total_steps, found.best) == ("stopped", 0, None, None)
    assert found.command is not None
    run = make_run("y", 0)
    (run / "metrics.jsonl").unlink()
    assert (read_run(run).state, read_run(run).age_s) == ("stopped", None)


@pytest.mark.parametrize(
    "more", ['{"kind": "eval", "step": 10, "ep', "\x00\x00\x00", "7\n", '{"kind": "eval"}\n', "\n\n"]
)
def test_a_last_line_that_was_cut_short(more: str, make_run: MakeRun) -> None:
    run = make_run("x", 2)
    whole = read_run(run)
    write_log(run, 2, more)
    cut = read_run(run)
    assert (cut.step, cut.total_steps, cut.best, cut.state) == (10, 15, whole.best, "stopped")


def test_accuracies_hold_at_the_softness_of_the_end(make_run: MakeRun) -> None:
    assert read_run(make_run("causal", 1)).best == 40.0
    soft = {"mode": "standard", "shape": "constant", "value": 0.5, "cutoff_epochs": 0}
    found = read_run(make_run("soft", 1, *(f"schedule.softness.{key}={value}" for key, value in soft.items())))
    assert (found.best, found.last_softness) == (49.0, 0.5)


def test_recipes_of_other_names_and_unchanged_ones(make_run: MakeRun) -> None:
    assert read_run(make_run("own", 1, "name=mine")).changes is None
    assert read_run(make_run("plain", 1, recipe=load_recipe("digits_micro"))).changes == ()


def test_a_recipe_of_an_older_version(make_run: MakeRun) -> None:
    """A key that came later has its default."""
    run = make_run("x", 1)
    file = run / "recipe.yaml"
    file.write_text("".join(line for line in file.read_text().splitlines(True) if "keep_every_epochs" not in line))
    found = read_run(run)
    assert found.state == "stopped"
    assert found.changes == read_run(make_run("y", 1)).changes


def test_a_damaged_last_checkpoint_has_one_before_it(make_run: MakeRun) -> None:
    run = make_run("x", 2)
    keep_checkpoint(run, "last", kept_tag(10))
    (run / "checkpoints" / "last" / "training_state.pt").unlink()
    found = read_run(run)
    assert (found.state, found.step, found.epoch) == ("stopped", 5, 1)
    assert found.checkpoints == ("last", "previous", "step-00000010")
    (run / "checkpoints" / "previous" / "meta.json").write_text("{")
    found = read_run(run)
    assert found.state == "broken"
    assert "training_state.pt is missing" in str(found.about)


@pytest.mark.parametrize("file", ["recipe.yaml", "environment.json", "metrics.jsonl", "checkpoints", "classes.json"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"[1, 2", b"a: b: c", b"{}\n", b"name: 3\n"])
def test_no_damage_raises(file: str, content: bytes, make_run: MakeRun) -> None:
    run = make_run("x", 1)
    if file == "checkpoints":
        for path in (run / file / "last").iterdir():
            path.write_bytes(content)
    else:
        (run / file).write_bytes(content)
    found = read_run(run)
    expected = {"recipe.yaml": "broken", "checkpoints": "broken"}.get(file, "stopped")
    assert found.state == expected
    assert (found.about is not None) == (expected == "broken")
    assert "\n" not in str(found.about)
    json.dumps(found.to_dict(), allow_nan=False)


ODD_VALUES = ["x", None, [1], True, -1, 1e300, {"a": 1}, float("nan")]


@pytest.mark.parametrize("key", ["step", "epoch", "top1", "softness"])
@pytest.mark.parametrize("value", ODD_VALUES)
def test_a_line_without_numbers_is_passed_over(key: str, value: Any, make_run: MakeRun) -> None:
    run = make_run("x", 1)
    line = {"kind": "eval", "step": 7, "epoch": 1.4, "softness": 0.0, "top1": 99.0, "top1_causal": 99.0, key: value}
    write_log(run, 1, json.dumps(line) + "\n")
    found = read_run(run)
    assert (found.state, found.best) == ("stopped", 40.0)


def test_files_without_end_break_their_own_run_only(make_run: MakeRun) -> None:
    """Sparse files: of any size for nothing."""
    for name in ("recipe.yaml", "metrics.jsonl", "environment.json"):
        run = make_run(name.replace(".", "-"), 1)
        os.truncate(run / name, 40 << 30)
        found = read_run(run)
        assert found.state == ("stopped" if name == "environment.json" else "broken")


def test_runs_are_found_at_any_depth(make_run: MakeRun, tmp_path: Path) -> None:
    runs = [make_run(name, 0) for name in ("b", "a/x", "a/y/z")]
    make_run("b/inside", 0)
    make_run(".hidden", 0)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "recipe.yaml").touch()
    assert find_runs(tmp_path) == sorted(runs)
    assert find_runs(runs[0]) == [runs[0]]


def test_no_runs_and_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs in"):
        find_runs(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        find_runs(tmp_path / "absent")


def test_a_status_is_plain_values() -> None:
    plain = RunStatus(path=Path("x"), recipe="own").to_dict()
    assert json.loads(json.dumps(plain)) == plain
