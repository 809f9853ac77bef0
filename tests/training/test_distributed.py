"""Several processes train, evaluate, stop and go on as one would."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from illama.checkpoint import load_checkpoint
from illama.data.loading import batch as data_batch
from illama.distributed import join_world
from illama.errors import Stopped, ToldElsewhere, UserError
from illama.models import ILlama, ModelConfig
from illama.recipes import Recipe, plan_batches
from illama.training.loop import Run, train
from illama.training.objective import Objective
from tests.pictures import paint, tiny
from tests.processes import in_processes
from tests.runs import distance, records, same_weights, weights

EVERYTHING = (
    "train.ema_decay=0.9",
    "train.save_every_steps=2",
    "augment.mixup=0.2",
    "augment.cutmix=0.5",
    "augment.erase_prob=0.25",
    "optimizer.clip_grad=1.0",
    "data.max_eval_images=41",
    "train.eval_batch=8",
)
FILES = ("model.safetensors", "ema.safetensors")
LEVERS = ("schedule.patch_drop={rate: 0.5, cutoff_epochs: 2}", "schedule.mixing={mode: late, cutoff_epochs: 1}")


def train_here(recipe: Recipe, out: Path, crash_at: int | None = None) -> list[tuple[int, list[int]]]:
    """Train; returns (step, positions of the images) of each micro-batch. A crash is an exception before a step."""
    seen: list[tuple[int, list[int]]] = []
    step = Run._step

    def noted(self: Run, batches: Any) -> float:
        if self.state.progress.step == crash_at:
            self.keeper.saver.close()  # how much of a save a crash leaves is no matter of this test
            raise Stopped("crash")

        def watched() -> Any:
            for batch in batches:
                seen.append((batch.micro.step, batch.indices.tolist()))
                yield batch

        return step(self, watched())

    Run._step = noted  # type: ignore[method-assign]
    try:
        train(recipe, out, device="cpu")
    except Stopped:
        if crash_at is None:
            raise
    finally:
        Run._step = step  # type: ignore[method-assign]
    return seen


@pytest.mark.parametrize(("processes", "more"), [(2, ()), (4, ()), (2, (*LEVERS, "optimizer.name=muon"))])
def test_several_processes_train_to_the_weights_of_one(
    processes: int, more: tuple[str, ...], toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    """The recipe names the total batch alone: each process takes a share of every draw batch."""
    recipe = toy(*EVERYTHING, *more)
    in_processes(1, train_here, recipe, tmp_path / "one")
    in_processes(processes, train_here, recipe, tmp_path / "several")
    for file in FILES:
        assert distance(tmp_path / "one", tmp_path / "several", file) <= 1e-6
    for one, several in zip(records(tmp_path / "one"), records(tmp_path / "several"), strict=True):
        assert one.pop("kind") == several.pop("kind")
        assert one == pytest.approx(several, rel=1e-5)


@pytest.mark.parametrize("more", [(), (*LEVERS, "optimizer.name=muon")])
def test_the_same_micro_batches_give_the_same_bits(
    more: tuple[str, ...], toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    """With the device batch named, one process accumulates what two add up: two sums of the same two numbers."""
    recipe = toy(*EVERYTHING, "train.device_batch=16", *more)
    in_processes(1, train_here, recipe, tmp_path / "one")
    in_processes(2, train_here, recipe, tmp_path / "two")
    assert all(same_weights(tmp_path / "one", tmp_path / "two", file=file) for file in FILES)


def test_two_processes_train_a_part_of_cifar10_like_one(
    cifar: Callable[..., Recipe], shared_data: Path, tmp_path: Path
) -> None:
    recipe = cifar(f"data.path={shared_data / 'cifar10'}")
    in_processes(1, train_here, recipe, tmp_path / "one")
    in_processes(2, train_here, recipe, tmp_path / "two")
    assert distance(tmp_path / "one", tmp_path / "two") <= 1e-6


def test_shards_train_like_copies(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    """FSDP2 against DDP, also with accumulation, and one process reads the checkpoint of the shards.

    Gradients can be added up in bf16. Where a run computes in it, shards travel in it: the products are those of
    copies, the norms' weights alone are rounded more, and shards stay float32.
    """
    fsdp, twice, bf16 = "train.parallel=fsdp", "train.accumulation=2", "train.precision=bf16"
    runs = {
        "copies": (),
        "shards": (fsdp,),
        "copies twice": (twice,),
        "shards twice": (fsdp, twice),
        "sums in bf16": (fsdp, "train.grad_reduce=bf16"),
        "copies in bf16": (bf16,),
        "shards in bf16": (bf16, fsdp),
    }
    short = ("schedule.epochs=2", "train.save_every_steps=100")
    in_processes(2, train_all, {tmp_path / name: toy(*EVERYTHING, *short, *edits) for name, edits in runs.items()})

    def apart(one: str, other: str, file: str = FILES[0]) -> float:
        return distance(tmp_path / one, tmp_path / other, file)

    for file in FILES:
        assert apart("copies", "shards", file) <= 1e-6
        assert apart("copies twice", "shards twice", file) <= 1e-6
    states = [load_checkpoint(tmp_path / name, "last").training_state["optimizer"] for name in ("copies", "shards")]
    for one, other in zip(*(state["state"].values() for state in states), strict=True):
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-4, atol=1e-8)
    assert 1e-7 < apart("shards", "sums in bf16") < 1e-2
    assert 1e-7 < apart("copies in bf16", "shards in bf16") <= apart("shards", "copies in bf16")
    state = load_checkpoint(tmp_path / "shards in bf16", "last")
    assert {tensor.dtype for tensor in state.model_state.values()} == {torch.float32}


def train_all(recipes: dict[Path, Recipe]) -> None:
    """One after the other."""
    for out, recipe in recipes.items():
        train_here(recipe, out)


def train_twice(recipe: Recipe, whole: Path, broken: Path, crash_at: int) -> Any:
    """Undisturbed and crashed; the images of both."""
    return train_here(recipe, whole), train_here(recipe, broken, crash_at)


IN_SHORT = [(2, (1, 2), "fsdp"), (1, (2,), "ddp"), (3, (1,), "ddp")]


@pytest.mark.parametrize(
    ("before", "others", "parallel"),
    [*IN_SHORT, *(pytest.param(*case, marks=pytest.mark.faults) for case in (
        (2, (1, 2), "ddp"), (1, (2,), "fsdp"), (3, (3,), "ddp"), (3, (1, 3), "fsdp"),
    ))],
)  # fmt: skip
def test_a_run_goes_on_with_another_number_of_processes(
    before: int, others: tuple[int, ...], parallel: str, toy: Callable[..., Recipe], tmp_path: Path
) -> None:
    """In the middle of an epoch: the same images in the same order, none twice, and the weights of an undisturbed run.

    On the same number of processes bit for bit.
    """
    recipe = toy(*EVERYTHING, f"train.parallel={parallel}", "train.total_batch=24", "optimizer.lr_batch=24")

    def images_of_steps(ranks: Iterable[list[tuple[int, list[int]]]]) -> dict[int, list[int]]:
        steps: dict[int, list[int]] = {}
        for step, chosen in (entry for rank in ranks for entry in rank):
            steps.setdefault(step, []).extend(chosen)
        return {step: sorted(chosen) for step, chosen in steps.items()}

    ranks = in_processes(before, train_twice, recipe, tmp_path / "whole", tmp_path / "broken", 9)
    expected, first = map(images_of_steps, zip(*ranks, strict=True))
    assert load_checkpoint(tmp_path / "broken", "last").meta.step == 8  # an epoch has six steps
    for after in others:
        run = shutil.copytree(tmp_path / "broken", tmp_path / f"on {after}")
        went_on = images_of_steps(in_processes(after, train_here, recipe, run))
        assert min(went_on) == 8
        done = {step: chosen for step, chosen in first.items() if step < 8} | went_on
        assert done == expected
        for epoch in range(3):
            images = [image for step in range(6 * epoch, 6 * epoch + 6) for image in done[step]]
            assert len(images) == len(set(images)) == 6 * 24
        for file in FILES:
            assert distance(tmp_path / "whole", run, file) <= 1e-6
            if before == after:
                assert same_weights(tmp_path / "whole", run, file=file)
        if before == after:
            assert records(tmp_path / "whole") == records(run)


def stop_by_signal_on(rank: int, at_step: int, recipe: Recipe, out: Path) -> Any:
    import os
    import signal

    step = Run._step

    def signalled(self: Run, batches: Any) -> float:
        if self.world.rank == rank and self.state.progress.step == at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batches)

    Run._step = signalled  # type: ignore[method-assign]
    return train(recipe, out, device="cpu")


def test_a_signal_to_one_process_stops_all_at_the_same_step(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = toy(*EVERYTHING)
    ends = in_processes(2, stop_by_signal_on, 1, 6, recipe, tmp_path / "run")
    assert [type(end) for end in ends] == [Stopped, Stopped]
    assert str(ends[0]) == str(ends[1])
    assert load_checkpoint(tmp_path / "run", "last").meta.step == 8  # the outcome of a vote is known a step later
    in_processes(2, train_here, recipe, tmp_path / "run")
    in_processes(2, train_here, recipe, tmp_path / "whole")
    assert same_weights(tmp_path / "whole", tmp_path / "run")


def nan_on(rank: int, at_step: int, recipe: Recipe, out: Path) -> tuple[str, type, dict[str, np.ndarray]]:
    """Message and weights that a run is left with after one process met a loss that is not finite."""
    right, runs = Objective.__call__, []
    step = Run._step

    def noted(self: Run, batches: Any) -> float:
        runs[:] = [self]
        return step(self, batches)

    def wrong(self: Objective, *batch: torch.Tensor) -> torch.Tensor:
        bad = runs[0].world.rank == rank and runs[0].state.progress.step == at_step
        return right(self, *batch) * (float("nan") if bad else 1.0)

    Run._step, Objective.__call__ = noted, wrong  # type: ignore[method-assign]
    with pytest.raises(UserError) as stopped:
        train(recipe, out, device="cpu")
    return (
        str(stopped.value),
        type(stopped.value),
        {n: p.detach().numpy() for n, p in runs[0].parts.model.named_parameters()},
    )


def test_a_loss_that_is_not_finite_on_one_process_stops_all(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    recipe = toy("train.log_every_steps=4")
    (message, told, one), (_, silent, other) = in_processes(2, nan_on, 1, 7, recipe, tmp_path / "run")
    assert (told, silent) == (UserError, ToldElsewhere)
    assert "step 7 on process [1]" in message
    assert "the last good checkpoint is step 5" in message
    in_processes(2, train_here, toy("train.log_every_steps=4", "train.save_every_steps=7"), tmp_path / "good", 7)
    good = weights(tmp_path / "good")
    assert all((one[name] == good[name].numpy()).all() and (other[name] == one[name]).all() for name in good)


def fail_to_open(recipe: Recipe, out: Path) -> Any:
    """Only rank 1 cannot read its data."""
    if os.environ["RANK"] == "1":
        from illama.tasks import fit

        def broken(*arguments: Any, **options: Any) -> Any:
            raise UserError("no such data on this machine")

        fit.look = broken
    return train(recipe, out, device="cpu")


def test_an_error_of_one_process_ends_all_and_is_told_once(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    ends = in_processes(2, fail_to_open, toy(), tmp_path / "run")
    assert [type(end) for end in ends] == [UserError, ToldElsewhere]
    assert "no such data on this machine" in str(ends[0])
    assert not (tmp_path / "run").exists()


def given(recipes: list[Recipe], out: Path, starts: list[Path | None]) -> Any:
    """Each process is given its own."""
    rank = int(os.environ["RANK"])
    return train(recipes[rank], out, device="cpu", init_from=starts[rank]).steps


DATA = {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}


@pytest.mark.parametrize(
    ("other", "changes", "expected"),
    [
        ({}, ("seed=1",), "seed is 0 for process 0 and 1 for process 1"),
        ({}, ("optimizer.lr=0.02",), r"optimizer\.lr is 0\.01 for process 0 and 0\.02 for process 1"),
        ({}, ("model.embed_dim=32",), r"model\.embed_dim is 16 for process 0 and 32"),
        ({}, ("data.max_eval_images=3",), r"data\.max_eval_images"),
        ({}, ("schedule.epochs=4",), r"schedule\.epochs"),
        ({"train/cat": 12}, (), "training images is 16 for process 0 and 20"),
        ({"val/dog": 7}, (), "evaluation images is 8 for process 0 and 11"),
        ({"train/emu": 4}, (), r"num_classes is 2 for process 0 and 3"),
    ],
)
def test_processes_that_were_given_different_things_do_not_begin(
    other: dict[str, int], changes: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    """Their machines may have different copies of the data, of the recipe and of the command."""
    folders = [paint(tmp_path / "zero", DATA), paint(tmp_path / "one", DATA | other)]
    recipes = [tiny(folders[0]), tiny(folders[1], *changes)]
    ends = in_processes(2, given, recipes, tmp_path / "run", [None, None])
    assert [type(end) for end in ends] == [UserError, ToldElsewhere]
    assert re.search(expected, str(ends[0])), ends[0]
    assert not (tmp_path / "run").exists()


def test_class_names_are_compared_not_their_number(tmp_path: Path) -> None:
    paint(tmp_path / "zero", DATA)
    paint(tmp_path / "one", {name.replace("dog", "emu"): count for name, count in DATA.items()})
    ends = in_processes(2, given, [tiny(tmp_path / "zero"), tiny(tmp_path / "one")], tmp_path / "run", [None, None])
    assert "class 1 is dog for process 0 and emu for process 1" in str(ends[0])


def test_the_same_data_at_another_place_is_the_same(tmp_path: Path) -> None:
    paint(tmp_path / "zero", DATA)
    paint(tmp_path / "one", DATA)
    recipes = [tiny(tmp_path / "zero"), tiny(tmp_path / "one")]
    assert in_processes(2, given, recipes, tmp_path / "run", [None, None]) == [12, 12]


def test_start_weights_are_compared(tmp_path: Path) -> None:
    data = paint(tmp_path / "data", DATA)
    for seed in (1, 2):
        in_processes(1, train_here, tiny(data, f"seed={seed}"), tmp_path / f"source{seed}")
    starts = [tmp_path / "source1", tmp_path / "source2"]
    ends = in_processes(2, given, [tiny(data)] * 2, tmp_path / "run", starts)
    assert "start weights is" in str(ends[0])
    ends = in_processes(2, given, [tiny(data)] * 2, tmp_path / "run", [starts[0], None])
    assert "--init-from is given for process 0 and not given for process 1" in str(ends[0])
    (tmp_path / "source1").rename(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere", tmp_path / "source1")
    starts[1] = tmp_path / "elsewhere"
    assert in_processes(2, given, [tiny(data)] * 2, tmp_path / "run", starts) == [12, 12]


def weights_on_the_way(precision: str) -> list[tuple[str, torch.dtype, torch.dtype]]:
    """What a block's layers see as the type of their weights and of the residual stream."""
    from illama.training.objective import shard_model

    model = ILlama(ModelConfig(img_size=32, embed_dim=32, num_heads=1, depth=2, num_classes=3))
    seen: list[tuple[str, torch.dtype, torch.dtype]] = []
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.append((name, module.weight.dtype, inputs[0].dtype))
            )
    with join_world("cpu") as (_, device):
        shard_model(model, device, precision=precision)  # type: ignore[arg-type]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            model(torch.randn(2, 3, 32, 32)).float().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    return seen


def test_half_as_many_bytes_travel(tmp_path: Path) -> None:
    for precision in ("float32", "bf16"):
        for seen in in_processes(2, weights_on_the_way, precision):
            in_blocks = {dtype for name, dtype, _ in seen if name.startswith("blocks")}
            outside = {dtype for name, dtype, _ in seen if not name.startswith("blocks")}
            stream = {entering for name, _, entering in seen if "norm" in name}
            assert in_blocks == {torch.bfloat16 if precision == "bf16" else torch.float32}
            assert outside == stream == {torch.float32}


def test_copies_add_up_in_bf16_on_cuda_only(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    ends = in_processes(2, train_here, toy("train.grad_reduce=bf16"), tmp_path / "run")
    assert all(isinstance(end, UserError) for end in ends)
    assert "train.grad_reduce=bf16 needs CUDA" in str(ends[0])


def test_the_total_batch_stays_or_there_is_no_run(toy: Callable[..., Recipe], tmp_path: Path) -> None:
    for processes in (1, 2, 4):
        assert plan_batches(toy(), processes).total_batch == 32
    ends = in_processes(3, train_here, toy(), tmp_path / "run")
    assert all(isinstance(end, UserError) for end in ends)
    assert "train.total_batch 32 is not a multiple of 3 devices" in str(ends[0])
    assert "optimizer.lr_scaling=linear" in str(ends[0])


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_rows_of_all_processes_make_the_draw_batch(processes: int, toy: Callable[..., Recipe]) -> None:
    """Each row once; and each process holds whole pairs of mixing, paired in its own batch as in the whole one."""
    recipe = toy("train.total_batch=48", "optimizer.lr_batch=48")
    plan = plan_batches(recipe, processes)
    rows = [data_batch.TrainingOrder(160, plan, 0, rank).share.rows for rank in range(processes)]
    assert sorted(int(row) for own in rows for row in own) == list(range(48))
    for own in rows:
        assert own is not None
        assert torch.equal(own.flip(0), 47 - own)


def gathered(value: Any) -> Any:
    with join_world("cpu") as (world, _):
        return world.gather((world.rank, value)), world.broadcast(world.rank), float(world.sum_(torch.ones(())))


def test_processes_hear_each_other() -> None:
    assert in_processes(3, gathered, "a") == [([(0, "a"), (1, "a"), (2, "a")], 0, 3.0)] * 3
