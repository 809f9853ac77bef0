"""Bad input: one clear line, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from illama.checkpoint import format as io
from illama.checkpoint import load_checkpoint
from illama.cli.main import main
from illama.models import ILlama, ModelConfig

TOY = [
    *("model.embed_dim=16", "model.depth=1", "model.num_heads=2", "schedule.epochs=3", "schedule.warmup_epochs=1"),
    *("schedule.softness.cutoff_epochs=1", "data.max_train_images=64", "data.max_eval_images=20"),
    *("train.total_batch=32", "optimizer.lr_batch=32"),
]
FOLDER = [*TOY, "model.img_size=8", "model.in_chans=3", "model.num_classes=2", "data.name=auto", "data.workers=0"]
FOLDER += ["data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]", "train.total_batch=4", "optimizer.lr_batch=4"]

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that has to fail; returns its one line."""

    def command(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        problems = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
        assert len(problems) == 1
        return problems[0]

    return command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of four tiny images, train and val."""
    numbers = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path / "pictures"


def train(out: Path, *words: object) -> list[object]:
    return ["train", *words, "--out", out, "--device", "cpu"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["digitz_micro"], "did you mean digits_micro"),
        (["digits_micro", "optimizer.learning_rate=1"], "unknown key"),
        (["digits_micro", "schedule.epochs=many"], "schedule.epochs"),
        (["digits_micro", "optimizer.weight_decay=-1"], "optimizer.weight_decay"),
        (["cifar10_micro"], "needs a path"),
        (["cifar10_micro", "data.path=no/such/folder"], "no/such/folder does not exist"),
        (["digits_micro", "train.total_batch=5000"], "more than the 1437 training images"),
    ],
)
def test_recipe_and_paths(refused: Refused, tmp_path: Path, words: list[str], expected: str) -> None:
    assert expected in refused(*train(tmp_path / "run", *words))
    assert list(tmp_path.iterdir()) == []


def test_empty_class_folder(refused: Refused, pictures: Path, tmp_path: Path) -> None:
    (pictures / "train" / "cat").mkdir()
    assert "cat" in refused(*train(tmp_path / "run", "digits_micro", *FOLDER, f"data.path={pictures}"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("storage", ["memory", "stream"])
def test_truncated_image_among_good_ones(
    storage: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted and skipped in training; named by predict, which answers for the others first."""
    broken = pictures / "train" / "bee" / "2.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    run = tmp_path / "run"
    words = train(run, "digits_micro", *FOLDER, f"data.path={pictures}", f"data.storage={storage}")
    assert main([str(word) for word in words]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "1 unreadable training image(s) left out" in said
    assert "2.jpg" in said
    assert main(["predict", str(run), str(pictures / "train" / "bee")]) == 2
    out, err = capsys.readouterr()
    assert out.count("%") >= 3
    assert "2.jpg" in err


class Evil:
    """Unpickling it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.target),)


def test_weights_that_cannot_be_used(refused: Refused, tmp_path: Path) -> None:
    other, text, evil = tmp_path / "other.pth", tmp_path / "text.pth", tmp_path / "evil.pth"
    torch.save(
        ILlama(ModelConfig(img_size=8, patch_size=2, in_chans=1, embed_dim=8, depth=1, num_heads=1)).state_dict(), other
    )
    text.write_text("weights? no.")
    evil.write_bytes(pickle.dumps({"model": Evil(tmp_path / "executed")}))
    for file, expected in ((other, "cls_token"), (text, "text.pth"), (evil, "evil.pth")):
        out = tmp_path / "run"
        assert expected in refused(*train(out, "digits_micro", *TOY, "--init-from", file))
        assert not out.exists()
    assert not (tmp_path / "executed").exists()


def test_full_disk_keeps_the_previous_checkpoint(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up in the second epoch; with room again, the same command ends like an undisturbed run."""
    command = train(tmp_path / "run", "digits_micro", *TOY, "model.drop_path=0.1")
    original, saves = io.save_file, []

    def save_file(state: dict[str, torch.Tensor], path: Path, **rest: object) -> None:
        saves.append(path)
        if len(saves) > 2:  # the first epoch saves "last" and "best"
            raise OSError(errno.ENOSPC, "No space left on device")
        original(state, path, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(io, "save_file", save_file)
        message = refused(*command)
    assert "No space left on device" in message
    assert "untouched" in message
    kept = load_checkpoint(tmp_path / "run", "last")
    assert kept is not None
    assert kept.meta.step == 2
    assert main([str(word) for word in command]) == 0
    whole = train(tmp_path / "whole", "digits_micro", *TOY, "model.drop_path=0.1")
    assert main([str(word) for word in whole]) == 0
    one, other = (load_checkpoint(tmp_path / name, "last") for name in ("run", "whole"))
    assert all(torch.equal(one.model_state[name], other.model_state[name]) for name in one.model_state)


@pytest.mark.parametrize("words", [["--data", ""], ["data.path="]])
def test_an_empty_path_is_not_the_current_folder(
    words: list[str], refused: Refused, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an empty variable of a shell makes it."""
    monkeypatch.chdir(pictures)
    assert "path" in refused(*train(tmp_path / "run", "digits_micro", *FOLDER, *words))
    assert not (tmp_path / "run").exists()
