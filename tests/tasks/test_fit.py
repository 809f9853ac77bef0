"""A recipe that does not fit its data is told so once, with a command that works as it is."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from illama.cli.main import main
from illama.data import look
from illama.errors import UserError
from illama.recipes import load_recipe
from illama.tasks.fit import FEW_STEPS, fit_to_data, short_run
from illama.weights import load_model
from tests.pictures import paint, tiny, tiny_words

THREE = {"cat": 12, "dog": 12, "emu": 12}


def typed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """A command as a person types it; exit code, and what stderr says in one line."""
    monkeypatch.setattr(sys, "argv", ["illama", *words])
    code = main(words)
    return code, capsys.readouterr().err.replace("\n", " ")


def proposed(said: str) -> list[str]:
    """The words of the command that a refusal proposes."""
    match = re.search(r"this fits: illama (.*)", said)
    assert match, said
    return shlex.split(match[1])


@pytest.mark.parametrize(
    ("counts", "changes", "problems"),
    [
        (THREE, ["model.num_classes=10", "train.total_batch=64"], 3),
        (THREE, ["model.num_classes=10"], 2),
        (THREE, [], 1),
        (THREE, ["data.val_fraction=0.2", "model.num_classes=2"], 1),
        ({"train/a": 5, "train/b": 4, "val/a": 1}, ["train.total_batch=512", "model.num_classes=1000"], 2),
        ({"train/a": 5, "train/b": 4, "val/a": 1}, ["train.total_batch=512", "train.accumulation=4"], 1),
        ({"train/a": 5, "train/b": 4}, ["train.total_batch=100"], 2),
        (
            {"train/a b": 5, "train/c'd": 4},
            ["train.total_batch=100", "optimizer.min_lr=1e-3", "model.num_classes=7"],
            3,
        ),
        ({"a": 300, "b": 300}, ["train.total_batch=1024", "optimizer.min_lr=1e-3", "model.num_classes=7"], 3),
        ({"train/a": 9, "train/b": 9, "val/a": 1}, ["train.total_batch=64", "train.device_batch=16"], 1),
    ],
)
def test_all_problems_at_once_and_the_command_works(
    counts: dict[str, int],
    changes: list[str],
    problems: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = paint(tmp_path / "my pictures", counts)
    words = [*tiny_words(data, *changes), "schedule.epochs=2", "--out", str(tmp_path / "run")]
    code, said = typed(words, monkeypatch, capsys)
    assert code == 2
    assert said.count("illama: error") == 1
    assert said.partition("this fits")[0].count("; ") == problems
    assert not (tmp_path / "run").exists()
    code, said = typed(proposed(said), monkeypatch, capsys)
    assert code == 0, said
    assert (tmp_path / "run" / "checkpoints" / "last").exists()


def test_the_packaged_recipe_on_three_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = paint(tmp_path / "d", THREE)
    words = ["train", "cifar10_micro", "--data", str(data), "--device", "cpu", "--out", str(tmp_path / "run")]
    code, said = typed([*words, "model.embed_dim=32", "model.depth=1"], monkeypatch, capsys)
    assert code == 2
    again = [*proposed(said), "schedule.epochs=1", "schedule.warmup_epochs=0", "schedule.softness.cutoff_epochs=0"]
    code, said = typed(again, monkeypatch, capsys)
    assert code == 0, said


def test_several_processes_keep_their_launcher(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = paint(tmp_path / "d", THREE)
    words = [*tiny_words(data, "model.num_classes=10"), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as ended:
        main(["launch", "--nproc-per-node", "2", *words])
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert said.count("does not fit the data") == 1
    again = proposed(said.replace("\n", " "))
    assert again[:3] == ["launch", "--nproc-per-node", "2"]


def test_one_class_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = paint(tmp_path / "d", {"train/cat": 3, "val/cat": 3})
    code, said = typed(tiny_words(data), monkeypatch, capsys)
    assert code == 2
    assert "one class only (cat)" in said
    assert "num_classes" not in said


# the number of classes


def test_classes_follow_the_data_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = paint(tmp_path / "d", {f"{split}/{name}": 4 for split in ("train", "val") for name in "abcde"})
    assert main([*tiny_words(data), "--out", str(tmp_path / "run")]) == 0
    model, meta = load_model(tmp_path / "run")
    assert model.config.num_classes == len(meta.classes) == 5
    assert load_recipe(tmp_path / "run" / "recipe.yaml").model.num_classes == 5
    capsys.readouterr()
    assert main([*tiny_words(data), "--out", str(tmp_path / "run")]) == 0  # typed again it is the same run
    assert "finished" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["1", "-1", "0", "none", "two", "2.5"])
def test_numbers_of_classes_that_mean_nothing(value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = paint(tmp_path / "d", {"train/a": 4, "train/b": 4, "val/a": 4})
    assert main(tiny_words(data, f"model.num_classes={value}")) == 2
    said = capsys.readouterr().err
    assert "model.num_classes" in said
    assert "Traceback" not in said


def test_recipes_that_fit_are_left_alone(tmp_path: Path) -> None:
    """A step of exactly all images; a split of any name to evaluate on; a test split alone."""
    data = paint(tmp_path / "d", {f"{split}/{name}": 2 for split in ("train", "later", "test") for name in ("a", "b")})
    assert len(fit_to_data(tiny(data, "data.eval_split=later")).train) == 4
    assert fit_to_data(tiny(data)).evaluated.description.startswith(f"folder {data}, split test")
    with pytest.raises(UserError, match=r"its 4 training images are fewer than the 8 of one step"):
        fit_to_data(tiny(data, "train.total_batch=8"))


def test_the_recipes_seed_holds_out(tmp_path: Path) -> None:
    data = paint(tmp_path / "d", {"a": 20, "b": 20})
    chosen = []
    for seed in (0, 3):
        recipe = tiny(data, "data.val_fraction=0.3", f"seed={seed}")
        fitted, layout = fit_to_data(recipe), look(recipe.data)
        same = layout.open("eval", seed=seed, in_chans=3)
        names = [same.location(i) for i in range(len(same))]
        assert names == [fitted.evaluated.location(i) for i in range(len(fitted.evaluated))]
        chosen.append(names)
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    ("changes", "proposes", "leaves"),
    [
        (["optimizer.lr_batch=64", "optimizer.lr=0.8"], ["optimizer.lr=0.2", "optimizer.lr_scaling=none"], ["min_lr"]),
        (["optimizer.lr_batch=64", "optimizer.min_lr=0.1", "optimizer.lr=0.2"], ["optimizer.min_lr=0.0"], []),
        (["optimizer.lr_batch=64", "optimizer.lr_scaling=linear"], [], ["optimizer.lr=", "lr_scaling=none"]),
        (["optimizer.lr_batch=4"], ["train.total_batch=4"], ["optimizer."]),
    ],
)
def test_a_smaller_batch_gets_its_learning_rate(
    changes: list[str], proposes: list[str], leaves: list[str], tmp_path: Path
) -> None:
    """The square root of the batch's share, as Adam needs it; what the recipe says about scaling stays."""
    data = paint(tmp_path / "d", {f"{split}/{name}": 20 for split in ("train", "val") for name in ("a", "b")})
    with pytest.raises(UserError) as refused:
        fit_to_data(tiny(data, "train.total_batch=64", *changes))
    for word in proposes:
        assert word in str(refused.value)
    for word in leaves:
        assert word not in str(refused.value)


# steps, and looking without training


def test_a_short_run_is_said() -> None:
    assert short_run(FEW_STEPS, 1) is None
    assert str(short_run(1, 7)).startswith("ATTENTION: only 7 steps in 7 epochs (1 in each)")


def test_print_looks_at_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = paint(tmp_path / "d", {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4})
    assert main([*tiny_words(data), "--print"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "num_classes: 2",
        "16 images",
        "8 images",
        "12 in 3 epochs",
        "2 classes: cat, dog",
        "splits train, val",
    ):
        assert expected in out, expected
    code, said = typed([*tiny_words(tmp_path / "missing"), "--print"], monkeypatch, capsys)
    assert code == 2
    assert f"{tmp_path / 'missing'} does not exist" in said
    code, said = typed([*tiny_words(data, "model.num_classes=9"), "--print"], monkeypatch, capsys)
    assert code == 2
    assert "model.num_classes=2" in said


def test_print_without_data_is_the_recipe_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "imagenet1k_tiny", "--print"]) == 0
    assert "num_classes: 1000" in capsys.readouterr().out


def test_the_first_lines_name_the_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    many = {f"{split}/kind {n}": 2 for split in ("train", "val") for n in range(1, 13)}
    assert main([*tiny_words(paint(tmp_path / "d", many)), "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err.replace("\n", " ")
    assert "12 classes: kind 1, kind 2" in said
    assert "kind 12" in said
    assert tiny(tmp_path / "d").classes_from_data


def test_what_no_command_can_mend_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ImageNet's validation images as they come, beside the folders of its classes."""
    data = paint(tmp_path / "d", {"train/n01440764": 4, "train/n01443537": 4, "val": 4})
    code, said = typed(tiny_words(data, "model.num_classes=1000", "train.total_batch=512"), monkeypatch, capsys)
    assert code == 2
    assert "4 pictures directly in it" in said
    assert "docs/data.md#imagenet-1k" in said
    assert "this fits" not in said
