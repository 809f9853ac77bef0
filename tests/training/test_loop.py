"""The loop: continuing exactly, stopping before damage, saying what happened."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.checkpoint import load_checkpoint
from illama.errors import Stopped, UserError
from illama.models import ILlama
from illama.recipes import Recipe
from illama.training.checkpointing import Keeper
from illama.training.loop import Run, train
from illama.training.objective import Objective
from illama.weights import load_model
from tests.runs import records, same_weights, weights
from tests.training.conftest import ON_CUDA

EVERYTHING = ("train.accumulation=2", "train.ema_decay=0.9", "train.save_every_steps=2", "augment.mixup=0.2")

DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))
# What is off in published recipes; patches and mixing change at step 10.
LEVERS = (
    "optimizer.name=muon",
    "schedule.patch_drop={rate: 0.5, cutoff_epochs: 2}",
    "schedule.mixing={mode: late, cutoff_epochs: 2}",
)

FILES = ("model.safetensors", "ema.safetensors")


class Crash(Exception):  # noqa: N818 - no error, an event
    """Stands for the machine going down."""


def crash_before(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    original = Run._step

    def step_or_crash(self: Run, batches: Any) -> float:
        if self.state.progress.step == step:
            raise Crash
        return original(self, batches)

    monkeypatch.setattr(Run, "_step", step_or_crash)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("crash_at", "more"),
    [(1, ()), (7, ()), (9, LEVERS), *(pytest.param(step, (), marks=pytest.mark.faults) for step in (4, 13))],
)
def test_a_crash_changes_nothing(
    crash_at: int,
    more: tuple[str, ...],
    device: str,
    toy: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, averaged weights, optimizer and every logged loss equal those of the uninterrupted run, bit for bit."""
    # A GPU repeats its bits where it is asked to only; there in the precision in which it is used.
    repeating = (*ON_CUDA, "train.deterministic=true", "train.precision=bf16") if device == "cuda" else ()
    recipe = toy(*EVERYTHING, *more, *repeating)
    train(recipe, tmp_path / "whole", device=device)
    with monkeypatch.context() as patch:
        crash_before(patch, crash_at)
        with pytest.raises(Crash):
            train(recipe, tmp_path / "broken", device=device)
    torch.manual_seed(12345)  # another process has another generator state
    train(recipe, tmp_path / "broken", device=device)

    for file in FILES:
        whole, broken = weights(tmp_path / "whole", file=file), weights(tmp_path / "broken", file=file)
        apart = {name: float((whole[name] - broken[name]).abs().max()) for name in whole}
        assert all(torch.equal(whole[name], broken[name]) for name in whole), (file, apart)
    assert records(tmp_path / "whole") == records(tmp_path / "broken")
    states = [load_checkpoint(tmp_path / name, "last").training_state for name in ("whole", "broken")]
    assert states[0]["average_updates"] == states[1]["average_updates"] == 15
    for one, other in zip(*(state["optimizer"]["state"].values() for state in states), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("deterministic", ["false", "true"])
def test_the_same_seed_gives_the_same_bits(
    deterministic: str, device: str, toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    if device == "cuda" and deterministic == "false":
        pytest.skip("a GPU promises it with train.deterministic=true only")
    wide = ON_CUDA if device == "cuda" else ()
    recipe = toy(*EVERYTHING, *wide, "augment.erase_prob=0.25", f"train.deterministic={deterministic}")
    for name in ("one", "other"):
        torch.manual_seed(len(name))  # what was drawn before does not matter
        train(recipe, tmp_path / name, device=device)
    assert all(same_weights(tmp_path / "one", tmp_path / "other", file=file) for file in FILES)
    assert records(tmp_path / "one") == records(tmp_path / "other")
    train(toy(*EVERYTHING, *wide, "seed=1"), tmp_path / "seed 1", device=device)
    assert not same_weights(tmp_path / "one", tmp_path / "seed 1")
    assert not torch.are_deterministic_algorithms_enabled()


def test_every_nth_epoch_is_kept(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    train(toy("train.keep_every_epochs=2", "schedule.epochs=5"), tmp_path / "run", device="cpu")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept == ["step-00000010", "step-00000020"]
    assert [load_checkpoint(tmp_path / "run", tag).meta.epoch for tag in kept] == [2, 4]
    assert load_checkpoint(tmp_path / "run", "previous").meta.step == 20


def test_epochs_between_two_checkpoints(toy: Callable[..., Recipe], tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Every third epoch, the last one, those that are kept, and no other unless it is evaluated as the best."""
    saved = []
    save = Keeper.save
    monkeypatch.setattr(Keeper, "save", lambda self, epoch, **how: (saved.append(epoch), save(self, epoch, **how)))
    epochs = (
        "schedule.epochs=8",
        "train.eval_every_epochs=8",
        "train.save_every_epochs=3",
        "train.keep_every_epochs=4",
    )
    train(toy(*epochs), tmp_path / "run", device="cpu")
    assert saved == [3, 4, 6, 8]
    saved.clear()
    train(
        toy("schedule.epochs=4", "train.eval_every_epochs=1", "train.save_every_epochs=4"),
        tmp_path / "evaluated",
        device="cpu",
    )
    best = [record["top1_causal"] for record in records(tmp_path / "evaluated") if record["kind"] == "eval"]
    better = [epoch for epoch in range(1, 5) if best[epoch - 1] > max([-1.0, *best[: epoch - 1]])]
    assert saved == sorted({*better, 4})


def test_accumulation_equals_one_large_batch(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    for parts in (1, 4):
        recipe = toy(f"train.accumulation={parts}", "model.drop_path=0", "augment.crop=none", "augment.rotate=0")
        train(recipe, tmp_path / str(parts), device="cpu")
    one, four = weights(tmp_path / "1"), weights(tmp_path / "4")
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-3, atol=1e-5)


def test_schedules_reach_the_model_at_every_step(
    toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original, run_blocks = ILlama.forward, ILlama.run_blocks

    def forward(self: ILlama, images: torch.Tensor, *kept: torch.Tensor) -> torch.Tensor:
        if self.training:
            seen.append((float(self.softness), self.blocks[-1].drop_path1.rate))
        return original(self, images, *kept)

    def counted(self: ILlama, tokens: torch.Tensor, **how: Any) -> torch.Tensor:
        computed[self.training].append(tokens.shape[1])
        return run_blocks(self, tokens, **how)

    monkeypatch.setattr(ILlama, "forward", forward)
    monkeypatch.setattr(ILlama, "run_blocks", counted)
    computed: dict[bool, list[int]] = {True: [], False: []}
    train(toy("schedule.patch_drop={rate: 0.3, cutoff_epochs: 1}"), tmp_path / "run", device="cpu")
    assert [softness for softness, _ in seen] == pytest.approx([1 - i / 9 for i in range(10)] + [0] * 5)
    assert {rate for _, rate in seen} == {0.2}
    assert computed[True] == [11 + 1] * 5 + [16 + 1] * 10
    assert set(computed[False]) == {16 + 1}
    logged = [line for line in records(tmp_path / "run") if line["kind"] == "train"]
    assert [line["softness"] for line in logged] == pytest.approx([seen[line["step"] - 1][0] for line in logged])
    assert [line["patches"] for line in logged] == [computed[True][line["step"] - 1] - 1 for line in logged]


@pytest.mark.parametrize(("bad_step", "more"), [(0, ()), (8, ()), (8, ("optimizer.name=muon",))])
def test_a_non_finite_loss_stops_before_the_weights_change(
    bad_step: int,
    more: tuple[str, ...],
    toy: Callable[..., Recipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The model still has the weights of the step before, though the loss is read at log points only."""
    recipe = toy("train.log_every_steps=4", "model.drop_path=0", *more)
    kept: dict[str, Any] = {}
    original = Run._step

    def step_with_nan(self: Run, batches: Any) -> float:
        kept["model"] = self.parts.model
        if self.state.progress.step == bad_step:
            kept["before"] = {name: p.detach().clone() for name, p in self.parts.model.named_parameters()}
            right = Objective.__call__
            monkeypatch.setattr(Objective, "__call__", lambda self, *batch: right(self, *batch) * math.nan)
        return original(self, batches)

    monkeypatch.setattr(Run, "_step", step_with_nan)
    with pytest.raises(UserError) as stopped:
        train(recipe, tmp_path / "run", device="cpu")
    message = str(stopped.value)
    assert f"step {bad_step} " in message
    assert "learning rate" in message
    assert ("the last good checkpoint is step 5" if bad_step else "no checkpoint yet") in message
    assert all(torch.equal(p, kept["before"][name]) for name, p in kept["model"].named_parameters())
    last = load_checkpoint(tmp_path / "run", "last")
    assert last is None if bad_step == 0 else last.meta.step == 5


@pytest.mark.parametrize(("value", "gives"), [(math.nan, "loss=nan"), (math.inf, "loss=nan"), (-math.inf, "loss=inf")])
def test_an_evaluation_that_is_not_finite_stops_the_run(
    value: float, gives: str, toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of training was finite to the end of the epoch; neither log nor checkpoint has what was broken then."""
    original = Run._step

    def step_that_breaks(self: Run, batches: Any) -> float:
        waited = original(self, batches)
        if self.state.progress.step == 9:
            with torch.no_grad():
                self.parts.model.head.bias[0] = value
        return waited

    monkeypatch.setattr(Run, "_step", step_that_breaks)
    with pytest.raises(UserError, match=rf"the evaluation at step 10 gives {gives}; the last good.* is step 5 .*--out"):
        train(toy("model.drop_path=0", "train.eval_every_epochs=1"), tmp_path / "run", device="cpu")
    assert [record["step"] for record in records(tmp_path / "run") if record["kind"] == "eval"] == [5]
    last = load_checkpoint(tmp_path / "run", "last")
    assert last is not None
    assert last.meta.step == 5


def test_a_changed_recipe_is_refused_and_named(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    train(toy(), tmp_path / "run", device="cpu")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"optimizer\.lr .*schedule\.epochs"):
        train(toy("optimizer.lr=5e-4", "schedule.epochs=4"), tmp_path / "run", device="cpu")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_running_a_finished_run_again_only_reports(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    first = train(toy(), tmp_path / "run", device="cpu")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors")}
    again = train(toy(), tmp_path / "run", device="cpu")
    assert (again.scores, again.steps, again.best) == (first.scores, first.steps, first.best)
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.safetensors")} == before


def test_init_from_starts_a_new_run(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    train(toy(), tmp_path / "first", device="cpu")
    source = tmp_path / "first" / "checkpoints" / "last"
    recipe = toy("optimizer.lr=1e-12", "optimizer.weight_decay=0", "optimizer.min_lr=1e-13")
    train(recipe, tmp_path / "second", device="cpu", init_from=source)
    old, new = weights(tmp_path / "first"), weights(tmp_path / "second")
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old)


def test_a_run_that_ends_with_a_soft_mask_says_so(
    toy: Callable[..., Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = toy(
        "schedule.softness.mode=standard", "schedule.softness.cutoff_epochs=0", "schedule.softness.shape=constant"
    )
    result = train(recipe, tmp_path / "run", device="cpu")
    assert "ATTENTION" in capsys.readouterr().err
    assert result.softness == 1.0
    assert load_model(tmp_path / "run")[0].softness == 1.0
    evaluated = [line for line in records(tmp_path / "run") if line["kind"] == "eval"]
    assert all("top1_causal" in line for line in evaluated)
    assert any(line["loss"] != line["loss_causal"] for line in evaluated)


def test_sigterm_saves_and_the_run_goes_on(
    toy: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy(), tmp_path / "whole", device="cpu")
    original = Run._step

    def step_then_signal(self: Run, batches: Any) -> float:
        waited = original(self, batches)
        if self.state.progress.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return waited

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_step", step_then_signal)
        with pytest.raises(Stopped, match="step 7"):
            train(toy(), tmp_path / "run", device="cpu")
    assert load_checkpoint(tmp_path / "run", "last").meta.step == 7
    train(toy(), tmp_path / "run", device="cpu")
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "run")
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_the_run_folder_is_complete(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(toy(), run, device="cpu")
    expected = ["recipe.yaml", "environment.json", "classes.json", "metrics.jsonl", "curves.png", "predictions.png"]
    expected += [f"checkpoints/{tag}/{f}" for tag in ("last", "best") for f in ("model.safetensors", "meta.json")]
    assert [name for name in expected if not (run / name).is_file()] == []
    assert list((run / "tensorboard").iterdir())
    assert json.loads((run / "classes.json").read_text()) == [str(i) for i in range(10)]
    assert json.loads((run / "environment.json").read_text())["versions"]["torch"] == torch.__version__
    state = torch.load(run / "checkpoints" / "last" / "training_state.pt", weights_only=True)
    assert state["progress"]["step"] == 15


def test_classes_of_data_and_model_must_agree(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"10 classes.*add model\.num_classes=10"):
        train(toy("model.num_classes=7"), tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_run_is_left_alone(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(UserError, match="is not a run"):
        train(toy(), tmp_path, device="cpu")
    assert [p.name for p in tmp_path.iterdir()] == ["letters.txt"]
