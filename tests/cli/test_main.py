"""Exit codes and messages, and that help costs nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from illama.cli.main import COMMANDS
from illama.errors import Stopped, ToldElsewhere, UserError
from illama.recipes import list_recipes
from illama.tasks import TASKS
from illama.training import loop
from tests.cli.conftest import Run

LIGHT = """
import sys
from illama.cli.main import main
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "pydantic", "timm", "PIL", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
sys.exit(code)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        [],
        ["--version"],
        ["train", "--help"],
        ["launch", "--help"],
        ["runs", "--help"],
        ["data", "shard", "--help"],
        ["data", "check", "--help"],
        ["bench", "model", "--help"],
        ["version"],
    ],
)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert not done.stderr


def test_help_names_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert name in out
        assert run(name, "--help")[0] == 0


def one_line(err: str) -> str:
    assert err.startswith("illama: error: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], 'Did you mean "train"?'),
        (["train"], "RECIPE"),
        (["train", "digits_micro", "--outt", "x"], "--out?"),
        (["train", "digits_mikro"], "did you mean digits_micro?"),
        (["train", "no/such.yaml"], "no/such.yaml does not exist"),
        (["eval"], "CHECKPOINT"),
        (["eval", "no/such/run"], "no run, checkpoint or weights file no/such/run"),
        (["eval", "x", "--batch-size", "many"], "batch-size"),
        (["predict", "x"], "IMAGE"),
        (["predict", "no/such/run", "no/such.jpg"], "no image no/such.jpg"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(run: Run, words: list[str], expected: str) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert out == ""
    assert expected in one_line(err)


def test_all_problems_of_a_recipe_in_one_message(run: Run) -> None:
    code, _, err = run("train", "digits_micro", "optimizer.lrr=3", "train.total_batch=none")
    assert code == 2
    assert "2 problems" in err
    assert "did you mean optimizer.lr?" in err
    assert "train.total_batch" in err


def fake_train(monkeypatch: pytest.MonkeyPatch, effect: BaseException | None = None) -> list[dict[str, Any]]:
    """Replace the loop; the calls it got."""
    calls: list[dict[str, Any]] = []

    def train(recipe: Any, **options: Any) -> loop.TrainResult:
        calls.append({"recipe": recipe} | options)
        if effect is not None:
            raise effect
        scores = {"top1": 98.5, "top1_causal": 90.25}
        return loop.TrainResult(Path("runs/x"), 7, scores, TASKS[recipe.task].score, 98.5, 0.5, 1.0, {})

    monkeypatch.setattr(loop, "train", train)
    return calls


def test_train_hands_everything_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_train(monkeypatch)
    words = [
        "train",
        "cifar10_micro",
        "optimizer.lr=5e-4",
        "--out",
        "runs/x",
        "train.total_batch=32",
        "--device",
        "cpu",
    ]
    code, out, _ = run(*words, "optimizer.lr_batch=32", "--init-from", "w.pth", "--data", "it's: here")
    assert code == 0
    (call,) = calls
    recipe = call.pop("recipe")
    assert call == {"out": Path("runs/x"), "device": "cpu", "init_from": Path("w.pth"), "track": None}
    assert (recipe.optimizer.lr, recipe.train.total_batch, recipe.data.path) == (5e-4, 32, "it's: here")
    assert "98.50 % at softness 0.5, 90.25 % at softness 0" in out


def test_train_hands_the_tracker_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_train(monkeypatch)
    assert run("train", "digits_micro", "--track", "wandb")[0] == 0
    assert [call["track"] for call in calls] == ["wandb"]
    code, out, err = run("train", "digits_micro", "--track", "mlflow")
    assert (code, out, len(calls)) == (2, "", 1)
    assert "wandb" in one_line(err)


def test_one_of_several_processes_speaks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them end with the same result, signal or error."""
    fake_train(monkeypatch)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert run("train", "digits_micro") == (0, "", "")
    fake_train(monkeypatch, Stopped("stopped at step 3"))
    assert run("train", "digits_micro") == (75, "", "")
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    fake_train(monkeypatch, ToldElsewhere("no such data"))
    assert run("train", "digits_micro") == (2, "", "")
    assert sum(slept) >= 1, "the process that tells is ended when this one is gone"


def test_print_shows_the_recipe_and_trains_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_train(monkeypatch)
    code, out, _ = run("train", "imagenet1k_tiny", "--print", "optimizer.weight_decay=0.07")
    assert code == 0
    assert not calls
    assert "weight_decay: 0.07" in out
    assert "4096" in out
    assert "312" in out  # steps per epoch
    code, out, err = run("train", "imagenet1k_tiny", "--print", "task=clasification")
    assert (code, out) == (2, "")
    assert err == "illama: error: unknown task 'clasification'; did you mean classification?\n"


@pytest.mark.parametrize(
    ("effect", "code", "message"),
    [
        (UserError("what to do"), 2, "illama: error: what to do\n"),
        (Stopped("stopped at step 3"), 75, "illama: stopped at step 3\n"),
        (KeyboardInterrupt(), 130, "illama: interrupted\n"),
    ],
)
def test_ends_have_their_exit_codes(
    run: Run, monkeypatch: pytest.MonkeyPatch, effect: BaseException, code: int, message: str
) -> None:
    fake_train(monkeypatch, effect)
    assert run("train", "digits_micro") == (code, "", message)


def test_our_bugs_keep_their_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_train(monkeypatch, ZeroDivisionError("oops"))
    code, _, err = run("train", "digits_micro")
    assert code == 1
    assert "Traceback" in err
    assert "oops" in err


def test_debug_adds_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_train(monkeypatch, UserError("what to do"))
    code, _, err = run("train", "--debug", "digits_micro")
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("illama: error: what to do\n")


def test_a_reader_that_goes_away_is_no_bug() -> None:
    command = f"{sys.executable} -c 'import sys; from illama.cli.main import main; sys.exit(main([\"recipes\"]))'"
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; echo ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() in ("0", "141")  # 0 if the list fitted into the pipe before it was closed


def test_recipes_are_listed_with_their_headlines(run: Run) -> None:
    code, out, _ = run("recipes")
    assert code == 0
    lines = out.splitlines()
    assert [line.split()[0] for line in lines] == list_recipes()
    assert all(len(line.split()) > 4 and line.endswith(".") for line in lines)


@pytest.mark.parametrize("name", ["meta", "hpu", "xla", "cuda:99", "cpu:x", "gpu", "", "-1", "privateuseone"])
@pytest.mark.parametrize("words", [["train", "digits_micro"], ["eval", "x"], ["predict", "x", "y"]])
def test_a_device_that_cannot_train_is_one_line(run: Run, words: list[str], name: str, tmp_path: Path) -> None:
    more = ["--out", str(tmp_path / "run")] if words[0] == "train" else []
    code, _, err = run(*words, f"--device={name}", *more)
    assert code == 2
    assert "illama: error: " in one_line(err)
    assert not (tmp_path / "run").exists()
    if words[0] == "train":
        assert "give cpu, cuda, cuda:N or mps" in err


def test_version(run: Run) -> None:
    code, out, _ = run("version")
    assert code == 0
    assert "torch" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "illama", "recipes"]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == "illama: error: the output cannot be written: No space left on device\n"
