"""Schedules equal the authors' arrays, step by step and in sum; what the authors refuse is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from illama.errors import UserError
from illama.recipes import load_recipe
from illama.training.schedules import Schedules, cosine, drop_path, learning_rate, softness

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "data" / "schedules.json").read_text())
RECIPES = {
    "tiny_in1k": "imagenet1k_tiny",
    "small_in1k": "imagenet1k_small",
    "base_in1k": "imagenet1k_base",
    "in21k_pretrain": "imagenet21k_base",
    "base_in1k_384_finetune": "imagenet1k_base_384",
}
Values = Callable[[int], float]


def curve(kind: str, args: dict[str, Any]) -> tuple[Values, int]:
    """The function of a golden entry and its number of steps."""
    per_epoch = args["niter_per_ep"]
    total = args["epochs"] * per_epoch
    cutoff = args.get("cutoff_epoch", 0) * per_epoch
    if kind == "softness":
        spec = {"value": args["soft_mask_rate"], "mode": args["mode"], "shape": args["schedule"]}
        return lambda step: softness(step, **spec, cutoff_steps=cutoff, total_steps=total), total
    if kind == "drop_rate":
        spec = {"rate": args["drop_rate"], "mode": args["mode"], "shape": args["schedule"]}
        return lambda step: drop_path(step, **spec, cutoff_steps=cutoff, total_steps=total), total
    if kind == "weight_decay":  # constant in every published run; the varying one is our cosine without warm-up
        return lambda step: cosine(step, args["base_value"], args["final_value"], total), total
    return lambda step: learning_rate(
        step,
        base=args["base_value"],
        minimum=args["final_value"],
        warmup_steps=args.get("warmup_steps", args["warmup_epochs"] * per_epoch),
        total_steps=total,
        start=args.get("start_warmup_value", 0.0),
    ), total


def close(kind: str, found: float, want: float) -> bool:
    relative = kind in ("learning_rate", "weight_decay")
    return abs(found - want) <= 1e-12 * (abs(want) if relative else 1)


ENTRIES = [
    pytest.param(kind, entry, id=f"{kind}{place}")
    for kind in ("softness", "drop_rate", "learning_rate", "weight_decay")
    for place, entry in enumerate(GOLDEN[kind])
    if "error" not in entry
]


@pytest.mark.parametrize(("kind", "entry"), ENTRIES)
def test_short_arrays_are_equal(kind: str, entry: dict[str, Any]) -> None:
    values, total = curve(kind, entry["args"])
    assert total == entry["length"] == len(entry["values"])
    for step, want in enumerate(entry["values"]):
        assert close(kind, values(step), want), step
    assert math.isclose(math.fsum(map(values, range(total))), entry["sum"], rel_tol=1e-10, abs_tol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_packaged_recipes_follow_the_published_arrays(name: str) -> None:
    golden, recipe = GOLDEN["recipes"][name], load_recipe(RECIPES[name])
    schedules = Schedules.of(recipe, golden["niter_per_ep"])
    curves = {"lr": schedules.lr, "softness": schedules.softness, "drop_path": schedules.drop_path}
    for part, values in curves.items():
        if part == "drop_path" and part not in golden:  # tiny has none
            assert recipe.model.drop_path == 0
            continue
        want = golden[part]
        assert schedules.total_steps == want["length"]
        kind = "learning_rate" if part == "lr" else part
        for step, value in zip(want["index"], want["value"], strict=True):
            assert close(kind, values(step), value), (part, step)
        total = math.fsum(map(values, range(schedules.total_steps)))
        assert math.isclose(total, want["sum"], rel_tol=1e-10, abs_tol=1e-12)
    assert recipe.optimizer.weight_decay == golden["weight_decay"]["args"]["base_value"]


def test_published_steps_per_epoch() -> None:
    for name, recipe in ((name, load_recipe(packaged)) for name, packaged in RECIPES.items()):
        images = recipe.data.num_train_images
        assert images is not None
        assert images // recipe.train.total_batch == GOLDEN["recipes"][name]["niter_per_ep"]


def test_marked_steps_of_tiny() -> None:
    schedules = Schedules.of(load_recipe("imagenet1k_tiny"), 312)
    assert (schedules.warmup_steps, schedules.softness_end_step, schedules.total_steps) == (1560, 15600, 93600)
    assert (schedules.softness(15599), schedules.softness(15600)) == (1.0, 0.0)
    standard = ["schedule.softness.mode=standard", "schedule.softness.cutoff_epochs=0"]
    assert Schedules.of(load_recipe("imagenet1k_tiny", standard), 312).softness_end_step == 93600


# What the authors' functions refuse, as a recipe would ask for it. The one about warm-up steps without warm-up epochs
# has no counterpart: recipes count warm-up in epochs.
REFUSED = {
    "softness": ["schedule.epochs=3", "schedule.softness.cutoff_epochs=5"],
    "late linear": ["schedule.epochs=6", "schedule.drop_path={mode: late, shape: linear, cutoff_epochs: 2}"],
    "early beyond": ["schedule.epochs=3", "schedule.drop_path={mode: early, cutoff_epochs: 5}"],
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_authors_refuse_is_refused_at_loading(case: str) -> None:
    edits = ["schedule.warmup_epochs=1", "schedule.softness={mode: soft, shape: linear, cutoff_epochs: 1}"]
    load_recipe("imagenet1k_small", [*edits, "schedule.epochs=3"])
    with pytest.raises(UserError, match=r"cutoff_epochs: allowed: 0 to|late starts at once"):
        load_recipe("imagenet1k_small", [*edits, *REFUSED[case]])


def test_the_functions_refuse_what_the_authors_refuse() -> None:
    refused = [(kind, entry) for kind in ("softness", "drop_rate") for entry in GOLDEN[kind] if "error" in entry]
    assert len(refused) == len(REFUSED)
    for kind, entry in refused:
        with pytest.raises(ValueError, match=r"do not fit|starts at once"):
            curve(kind, entry["args"])[0](0)


def test_patches_and_mixing_change_at_their_epoch() -> None:
    """Off they are those of the recipe; a loader that works ahead asks beyond the last step."""
    plain = Schedules.of(load_recipe("cifar10_tiny"), 4)
    assert [(plain.kept_patches(step), plain.mix_prob(step)) for step in (0, 799, 805)] == [(64, 1.0)] * 3
    edits = ["schedule.epochs=5", "schedule.warmup_epochs=1", "schedule.softness.cutoff_epochs=1"]
    edits += ["schedule.patch_drop={rate: 0.3, cutoff_epochs: 3}", "augment.mix_prob=0.4"]
    for mode, early, late in (("early", 0.4, 0.0), ("late", 0.0, 0.4)):
        recipe = load_recipe("cifar10_tiny", [*edits, f"schedule.mixing={{mode: {mode}, cutoff_epochs: 2}}"])
        schedules = Schedules.of(recipe, 4)
        assert [schedules.kept_patches(step) for step in range(22)] == [45] * 12 + [64] * 10
        assert [schedules.mix_prob(step) for step in range(22)] == [early] * 8 + [late] * 14


@pytest.mark.parametrize("step", [-1, 10, 11])
def test_steps_outside_the_run_are_refused(step: int) -> None:
    schedules = Schedules.of(load_recipe("digits_micro", ["schedule.epochs=10"]), 1)
    for values in (schedules.lr, schedules.softness, schedules.drop_path):
        with pytest.raises(ValueError, match=f"step {step} is outside the run; allowed: 0 to 9"):
            values(step)


def test_a_scaled_rate_cannot_be_forgotten() -> None:
    recipe = load_recipe("imagenet1k_tiny", ["optimizer.lr_scaling=linear"])
    with pytest.raises(ValueError, match="pass lr="):
        Schedules.of(recipe, 312)
    assert Schedules.of(recipe, 312, lr=1e-3).lr(1559) == 1e-3
    with pytest.raises(ValueError, match="at least 1"):
        Schedules.of(recipe, 0, lr=1e-3)


@settings(deadline=None)
@given(
    total=st.integers(1, 400),
    share=st.floats(0, 1),
    base=st.floats(1e-6, 1.0),
)
def test_learning_rate_rises_to_base_and_falls_towards_its_end(total: int, share: float, base: float) -> None:
    warmup = round(share * total)
    values = [
        learning_rate(step, base=base, minimum=1e-7, warmup_steps=warmup, total_steps=total) for step in range(total)
    ]
    assert values[:warmup] == sorted(values[:warmup])
    assert values[warmup:] == sorted(values[warmup:], reverse=True)
    if warmup:
        assert values[0] == 0
    if warmup > 1:
        assert values[warmup - 1] == base
    if warmup < total:
        assert math.isclose(values[warmup], base, rel_tol=1e-15)
        assert values[-1] > 1e-7


@settings(deadline=None)
@given(total=st.integers(1, 400), share=st.floats(0, 1), value=st.floats(0, 1))
def test_linear_softness_is_symmetric_and_ends(total: int, share: float, value: float) -> None:
    cutoff = round(share * total)
    found = [
        softness(step, value=value, mode="soft", shape="linear", cutoff_steps=cutoff, total_steps=total)
        for step in range(total)
    ]
    assert set(found[cutoff:]) <= {0.0}
    assert all(0 <= x <= value for x in found)
    if cutoff > 1:
        assert all(math.isclose(a + b, value, abs_tol=1e-15) for a, b in zip(found, found[cutoff - 1 :: -1]))  # noqa: B905
        assert (found[0], found[cutoff - 1]) == (value, 0.0)
