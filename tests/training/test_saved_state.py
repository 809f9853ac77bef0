"""Nothing is taken over from a checkpoint that the run would not have made itself, whatever its checksums say."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from illama.checkpoint import Checkpoint, load_checkpoint
from illama.checkpoint.folder import FILE_SUMS, OWN_SUM, DamagedError, _sum_of
from illama.checkpoint.format import read_safetensors
from illama.errors import UserError
from illama.recipes import Recipe
from illama.tasks import TASKS
from illama.training.checkpointing import demand_fitting
from illama.training.loop import Run, train
from tests.pictures import paint, tiny
from tests.runs import records, same_weights, stopped_run, sum_again

SPLITS = {"train/cat": 8, "train/dog": 8, "val/cat": 4, "val/dog": 4}
State = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paint(tmp_path_factory.mktemp("pictures") / "d", SPLITS)


@pytest.fixture(scope="module")
def recipe(pictures: Path) -> Recipe:
    return tiny(pictures, "train.ema_decay=0.9")


@pytest.fixture(scope="module")
def begun(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped_run(recipe, tmp_path_factory.mktemp("begun") / "run")


@pytest.fixture
def run(begun: Path, tmp_path: Path) -> Path:
    return shutil.copytree(begun, tmp_path / "run")


def rewrite(run: Path, change: Callable[[State], object]) -> None:
    """Change what the last checkpoint's training state says."""
    file = run / "checkpoints" / "last" / "training_state.pt"
    state = torch.load(file, weights_only=True)
    change(state)
    torch.save(state, file)
    sum_again(file.parent)


def refused(recipe: Recipe, run: Path, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        train(recipe, run, device="cpu")
    assert "\n" not in str(caught.value)
    assert "last" in str(caught.value)


def moment(state: State, number: int = 0, name: str = "exp_avg") -> torch.Tensor:
    return state["optimizer"]["state"][number][name]


def put(*path: Any, value: Any) -> Callable[[State], None]:
    """Another value at a place of the state."""

    def change(state: State) -> None:
        inside: Any = state
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value

    return change


FIRST = ("optimizer", "state", 0)
CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "a moment of another size": (put(*FIRST, "exp_avg", value=torch.zeros(3)), r"exp_avg of parameter 0 is \(3,\)"),
    "a huge moment": (
        put(*FIRST, "exp_avg_sq", value=torch.zeros(()).expand(10**6)),
        r"exp_avg_sq of parameter 0 is \(1000000,\)",
    ),
    "a moment of another type": (
        lambda state: put(*FIRST, "exp_avg", value=moment(state).double())(state),
        "float64, expected .* of float32",
    ),
    "a moment without memory": (
        lambda state: put(*FIRST, "exp_avg", value=moment(state).to("meta"))(state),
        "a tensor on meta",
    ),
    "a sparse moment": (
        lambda state: put(*FIRST, "exp_avg", value=moment(state).to_sparse())(state),
        "expected a plain tensor",
    ),
    "no moment": (lambda state: state["optimizer"]["state"][0].pop("exp_avg"), "parameter 0: 'exp_avg' is missing"),
    "a moment too many": (put(*FIRST, "max_exp_avg_sq", value=torch.zeros(1)), "'max_exp_avg_sq' is unknown"),
    "a parameter too few": (lambda state: state["optimizer"]["state"].pop(0), "the optimizer's state: 0 is missing"),
    "a parameter too many": (put("optimizer", "state", 10**9, value={}), "1000000000 is unknown"),
    "moments of steps to come": (put(*FIRST, "step", value=torch.tensor(7.0)), "step of parameter 0 is 7.0"),
    "moments of no step": (put(*FIRST, "step", value=torch.tensor(math.nan)), "step of parameter 0 is nan"),
    "a step to come": (
        put("progress", "step", value=10**9),
        "progress step is 1000000000, expected a number from 0 to",
    ),
    "a step before the first": (put("progress", "step", value=-1), "progress step is -1"),
    "a step that is no number": (put("progress", "step", value="6"), "progress step is '6'"),
    "a step that is True": (put("progress", "step", value=True), "progress step is True"),
    "a step of other weights": (put("progress", "step", value=5), "of step 5, and the weights are of step 6"),
    "an accuracy above all": (put("progress", "best", value=101.0), "progress best is 101.0"),
    "a log of no length": (put("progress", "log_bytes", value=-3), "progress log_bytes is -3"),
    "endless time": (put("progress", "seconds", value=math.inf), "progress seconds is inf"),
    "progress of another version": (put("progress", "luck", value=7), "progress: 'luck' is unknown"),
    "progress that is none": (put("progress", value=[6]), r"progress: \[6\] is no mapping"),
    "a loss of more steps than there were": (put("loss_steps", value=7), "loss_steps is 7"),
    "two losses": (put("loss_sum", value=torch.zeros(2)), r"loss_sum is \(2,\)"),
    "no process": (put("processes", value=0), "processes is 0"),
    "an unknown kernel": (
        put("linear_kernel", value="abacus"),
        "linear_kernel is 'abacus', expected onednn or mkl by kind",
    ),
    "an unknown kind": (
        put("linear_kernel", value={"odd": "mkl"}),
        "linear_kernel is .*expected onednn or mkl by",
    ),
    "a maybe": (put("native", value="perhaps"), "native is 'perhaps', expected true or false"),
    "an average of no updates": (put("average_updates", value=None), "average_updates does not go with"),
    "an average of the future": (put("average_updates", value=99), "average_updates is 99"),
    "no optimizer": (lambda state: state.pop("optimizer"), "'optimizer' is missing"),
    "an optimizer that is none": (put("optimizer", value=None), "the optimizer: None is no mapping"),
    "an unknown key": (put("scheduler", value={}), "'scheduler' is unknown"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_state_that_the_run_did_not_make_is_refused(change: str, run: Path, recipe: Recipe) -> None:
    alter, expected = CHANGES[change]
    rewrite(run, alter)
    refused(recipe, run, rf"checkpoint damaged: .*training_state.pt is not of this run: .*{expected}")


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("norm.weight"), "'norm.weight' is missing"),
        (lambda w: w.update(extra=torch.zeros(2)), "'extra' is unknown"),
        (lambda w: w.update({"norm.weight": torch.zeros(3)}), r"norm.weight is \(3,\)"),
        (lambda w: w.update({"norm.weight": w["norm.weight"].half()}), "norm.weight is .* of float16"),
    ],
)
def test_weights_that_the_run_did_not_make_are_refused(
    change: Callable[[dict[str, torch.Tensor]], object], expected: str, file: str, run: Path, recipe: Recipe
) -> None:
    path = run / "checkpoints" / "last" / file
    meta, weights = read_safetensors(path)[1], load_file(path)
    assert meta is not None
    change(weights)
    save_file(weights, path, metadata={"illama": meta.to_json()})
    sum_again(path.parent)
    refused(recipe, run, rf"{file} is not of this run: .*{expected}")


def test_hyperparameters_are_the_recipes(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    """Whatever stands in the file: the run goes on to the bits of one that nothing stopped."""

    def change(state: State) -> None:
        for group in state["optimizer"]["param_groups"]:
            group.update(weight_decay=100.0, betas=(0.0, 0.0), lr=9.0, lr_scale=50.0, maximize=True, eps=1.0)

    rewrite(run, change)
    train(recipe, run, device="cpu")
    train(recipe, tmp_path / "undisturbed", device="cpu")
    assert same_weights(run, tmp_path / "undisturbed")
    assert records(run) == records(tmp_path / "undisturbed")
    rewrite(run, lambda state: state["optimizer"].update(param_groups=[]))
    train(recipe, run, device="cpu")


@pytest.mark.parametrize("changes", [("seed=1",), ("optimizer.lr=2e-2",), ("augment.label_smoothing=0.2", "seed=3")])
def test_checkpoints_of_another_recipe_are_refused(
    changes: tuple[str, ...], run: Path, recipe: Recipe, pictures: Path, tmp_path: Path
) -> None:
    other = stopped_run(tiny(pictures, "train.ema_decay=0.9", *changes), tmp_path / "other")
    for tag in ("last", "previous", "best"):
        shutil.rmtree(run / "checkpoints" / tag, ignore_errors=True)
        if (other / "checkpoints" / tag).exists():
            shutil.copytree(other / "checkpoints" / tag, run / "checkpoints" / tag)
    refused(recipe, run, rf"is of another run; its recipe differs: .*{changes[0].partition('=')[0]} \(")


def test_checkpoints_of_other_data_are_refused(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    more = paint(tmp_path / "more", SPLITS, size=24)
    other = stopped_run(tiny(more, "train.ema_decay=0.9"), tmp_path / "other")
    shutil.rmtree(run / "checkpoints" / "last")
    shutil.copytree(other / "checkpoints" / "last", run / "checkpoints" / "last")
    refused(recipe, run, "of the same recipe, begun with other data or other start weights")


def test_checkpoints_of_the_same_run_elsewhere_are_its_own(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    """A copy that was restored, or a second run that is the same to the bit."""
    twin = stopped_run(recipe, tmp_path / "twin")
    shutil.rmtree(run / "checkpoints" / "last")
    shutil.copytree(twin / "checkpoints" / "last", run / "checkpoints" / "last")
    assert train(recipe, run, device="cpu").steps == 12


def test_states_of_earlier_versions_are_taken(run: Path, recipe: Recipe) -> None:
    for key in ("linear_kernel", "native", "processes", "run"):
        rewrite(run, lambda state, key=key: state.pop(key))  # type: ignore[misc]
    origin = json.loads((run / "origin.json").read_text())
    del origin["run"]
    (run / "origin.json").write_text(json.dumps(origin))
    assert train(recipe, run, device="cpu").steps == 12


@pytest.mark.parametrize(
    ("sums", "expected"),
    [
        ({}, "does not list the files with their checksums"),
        ({"model.safetensors": None}, "does not list the files with their checksums"),
        ({"../../recipe.yaml": "0" * 64}, "does not list the files with their checksums"),
        (None, r"training_state.pt has no checksum in meta.json"),
    ],
)
def test_files_without_checksums_are_refused(
    sums: dict[str, Any] | None, expected: str, run: Path, recipe: Recipe
) -> None:
    for tag in ("last", "previous"):
        file = run / "checkpoints" / tag / "meta.json"
        if not file.exists():
            continue
        meta = json.loads(file.read_text())
        del meta[OWN_SUM]
        if sums is None:
            del meta[FILE_SUMS]["training_state.pt"]
        else:
            meta[FILE_SUMS] = sums
        file.write_text(json.dumps(meta | {OWN_SUM: _sum_of(meta)}))
    refused(recipe, run, expected)


# junk anywhere

JUNK = st.sampled_from(
    [
        *(None, True, -1, 0, 7, 10**30, math.nan, -math.inf, "", "x", b"\0", [], {}, {"a": 1}, (1, 2)),
        *(torch.zeros(()), torch.zeros(0), torch.zeros(2, 2), torch.tensor(math.nan), torch.zeros(3, device="meta")),
        *(torch.zeros((), dtype=torch.int64), torch.zeros(2).to_sparse(), torch.tensor([1, 2]).bool()),
    ]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in nested containers, but those that the recipe decides."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, part in value.items():
            if key != "param_groups":
                yield from places(part, (*path, key))


def test_moments_of_muon_are_its_own(pictures: Path, tmp_path: Path) -> None:
    """One for each matrix of the blocks, in its shape; a run goes on with them and with no other."""
    recipe = tiny(pictures, "optimizer.name=muon")
    run = stopped_run(recipe, tmp_path / "run")
    moments = load_checkpoint(run, "last").training_state["optimizer"]["state"]
    number = next(number for number, entry in moments.items() if "momentum_buffer" in entry)
    place = ("optimizer", "state", number)
    whole = moments[number]["momentum_buffer"]
    for change, expected in (
        (put(*place, "momentum_buffer", value=torch.zeros(3)), rf"momentum_buffer of parameter {number} is \(3,\)"),
        (put(*place, value={}), "'momentum_buffer' is missing"),
        (put(*place, "exp_avg", value=whole), "'exp_avg' is unknown"),
    ):
        rewrite(shutil.copytree(run, tmp_path / "changed"), change)
        refused(recipe, tmp_path / "changed", expected)
        shutil.rmtree(tmp_path / "changed")
    train(recipe, run, device="cpu")


def test_junk_anywhere_is_taken_over_or_refused_in_a_line(run: Path, recipe: Recipe) -> None:
    saved = load_checkpoint(run, "last")
    assert saved is not None
    state = Run(recipe, run, torch.device("cpu"), None).state
    everywhere = list(places(saved.training_state))
    assert len(everywhere) > 50
    demand_fitting(saved, state, 12, TASKS["classification"].score)
    lines: set[int] = set()

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(everywhere), JUNK)
    def attack(place: tuple[Any, ...], junk: Any) -> None:
        altered: Checkpoint = dataclasses.replace(saved, training_state=copy.deepcopy(saved.training_state))
        put(*place, value=junk)(altered.training_state)
        try:
            demand_fitting(altered, state, 12, TASKS["classification"].score)
        except DamagedError as refusal:
            lines.add(str(refusal).count("\n"))
        else:
            state.load(altered)

    attack()
    assert lines == {0}
