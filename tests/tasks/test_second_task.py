"""The one loop trains a task of which it knows nothing: targets with a shape of their own, another score."""

from __future__ import annotations

import ast
import itertools
import json
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import illama
from illama.cli.train import last_line
from illama.data import TrainLoader
from illama.errors import UserError
from illama.recipes import load_recipe, plan_batches
from illama.training.loop import TrainResult, train
from illama.training.runs import read_run
from tests.pictures import DRAW
from tests.processes import in_processes
from tests.runs import distance, records, same_weights, stopped_run
from tests.tasks.shapes import LEVELS, TASK, Shapes, shapes_recipe

SHORT = ("schedule.epochs=2", "schedule.softness.cutoff_epochs=1", "data.storage=stream", "data.workers=1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """Its pictures are drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", DRAW)
        return train(shapes_recipe(), tmp_path_factory.mktemp("shapes") / "run", device="cpu")


def test_it_learns_and_is_judged_by_its_own_score(trained: TrainResult) -> None:
    """One class everywhere has a third of the IoU of its pixels, about 25 %; every record has the task's names."""
    evaluations = [record for record in records(trained.run_dir) if record["kind"] == "eval"]
    assert trained.scores["miou"] == evaluations[-1]["miou"] > 60
    assert trained.best == max(record["miou_causal"] for record in evaluations)
    assert {"miou", "miou_causal", "ema_miou", "loss", "loss_causal", "ema_loss"} <= evaluations[0].keys()
    assert "top1" not in json.dumps(records(trained.run_dir))
    assert last_line(trained).startswith(f"test mIoU {trained.scores['miou']:.2f} % after 80 steps, ")


def test_its_run_is_listed_and_drawn(trained: TrainResult) -> None:
    status = read_run(trained.run_dir)
    assert (status.state, status.score, status.best, status.last) == (
        "finished", "miou", trained.best, trained.scores["miou_causal"],
    )  # fmt: skip
    for picture in ("curves.png", "predictions.png"):
        assert (trained.run_dir / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("where", [("data.storage=memory",), ("data.storage=stream", "data.workers=2")])
def test_targets_move_with_their_images(where: tuple[str, ...]) -> None:
    """Grey tells the class, so the mask can be read off the augmented image; nothing is where it was."""
    recipe = shapes_recipe(*where)
    source = Shapes(320, seed=0)
    stream = TrainLoader(recipe, source, "cpu", plan_batches(recipe), targets=TASK.targets).batches()
    moved = 0
    for batch in itertools.islice(stream, 5):
        levels = (batch.images[:, 0] * recipe.data.std[0] + recipe.data.mean[0]) * 255
        nearest = (levels[..., None] - torch.tensor(LEVELS)).abs().argmin(-1)
        assert batch.targets.dtype == torch.int64
        assert torch.equal(nearest, batch.targets)
        untouched = torch.stack([source.target(int(i)) for i in batch.indices])
        moved += int((untouched != batch.targets).flatten(1).any(1).sum())
    stream.close()
    assert moved > 60


@pytest.mark.parametrize("where", [(), SHORT[2:]])
def test_it_resumes_to_the_bit(where: tuple[str, ...], tmp_path: Path) -> None:
    recipe = shapes_recipe(*SHORT[:2], *where)
    train(recipe, tmp_path / "whole", device="cpu")
    stopped_run(recipe, tmp_path / "stopped", step=13)
    torch.manual_seed(12345)
    train(recipe, tmp_path / "stopped", device="cpu")
    for file in ("model.safetensors", "ema.safetensors"):
        assert same_weights(tmp_path / "whole", tmp_path / "stopped", file=file)
    whole, stopped = (records(tmp_path / name) for name in ("whole", "stopped"))
    assert whole == stopped


def _train_here(out: Path) -> None:
    train(shapes_recipe(*SHORT[:2]), out, device="cpu")


def test_two_processes_equal_one(tmp_path: Path) -> None:
    in_processes(1, _train_here, tmp_path / "one")
    in_processes(2, _train_here, tmp_path / "two")
    assert distance(tmp_path / "one", tmp_path / "two") <= 1e-6
    for one, two in zip(records(tmp_path / "one"), records(tmp_path / "two"), strict=True):
        assert one.pop("kind") == two.pop("kind")
        assert one == pytest.approx(two, rel=1e-4)


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown task 'clasification'; did you mean classification\?"):
        train(load_recipe("digits_micro", ["task=clasification"]), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_nobody_asks_which_task_it_is() -> None:
    """No comparison with a task's name, and no import of a task's module, outside tasks/."""
    root = Path(illama.__file__).parent
    for file in root.rglob("*.py"):
        if file.parent.name == "tasks":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not words & {"classification", "segmentation"}, f"{file}:{node.lineno}"
            if isinstance(node, ast.ImportFrom):
                assert node.module != "illama.tasks.classification", f"{file}:{node.lineno}"
