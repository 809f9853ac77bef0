"""The total batch is exact on any number of devices; another total is never run without a word."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from illama.cli.recipes import describe
from illama.errors import UserError
from illama.recipes import BatchPlan, load_recipe, plan_batches
from illama.recipes.batches import train_image_count


@settings(deadline=None)
@given(devices=st.integers(1, 64), total=st.integers(1, 8192), device=st.integers(1, 256) | st.none())
def test_a_plan_makes_the_total_or_there_is_none(devices: int, total: int, device: int | None) -> None:
    edits = [f"train.total_batch={total}", f"train.device_batch={'null' if device is None else device}"]
    try:
        plan = plan_batches(load_recipe("imagenet1k_tiny", [*edits, f"optimizer.lr_batch={total}"]), devices)
    except UserError:
        assert total % (devices * (device or 1))
    else:
        assert devices * plan.device_batch * plan.accumulation == plan.total_batch == total
        assert plan.lr == 4e-3
        assert device in (None, plan.device_batch)


def test_accumulation_alone_decides_the_device_batch() -> None:
    recipe = load_recipe("imagenet1k_tiny", ["train.device_batch=null", "train.accumulation=4"])
    assert plan_batches(recipe, 8) == BatchPlan(128, 4, 4096, 4e-3, 8, draw_batch=1024)


def test_another_total_needs_a_word_about_the_learning_rate() -> None:
    edits = ["train.accumulation=4"]
    with pytest.raises(UserError) as caught:
        plan_batches(load_recipe("imagenet1k_tiny", edits), 2)
    assert str(caught.value) == (
        "2 devices x train.device_batch 128 x train.accumulation 4 = 1024, but train.total_batch is 4096; "
        "type train.accumulation=16 for 4096, or for 1024: "
        "type optimizer.lr_scaling=linear (lr 0.001) or optimizer.lr_scaling=none (lr stays 0.004)"
    )
    assert plan_batches(load_recipe("imagenet1k_tiny", ["train.accumulation=16"]), 2).total_batch == 4096
    for scaling, lr in (("linear", 1e-3), ("none", 4e-3)):
        plan = plan_batches(load_recipe("imagenet1k_tiny", [*edits, f"optimizer.lr_scaling={scaling}"]), 2)
        assert (plan.total_batch, plan.lr) == (1024, lr)


def test_a_total_that_lr_does_not_belong_to_is_refused() -> None:
    with pytest.raises(UserError, match=r"lr 0.004 belongs to a total batch of 4096; type .*lr_scaling=linear"):
        plan_batches(load_recipe("imagenet1k_tiny", ["train.total_batch=1024"]))


@pytest.mark.parametrize(
    "edits", [[], ["train.device_batch=null"], ["train.device_batch=512", "train.total_batch=512"]]
)
def test_what_the_refusal_offers_works(edits: list[str]) -> None:
    """Whatever three devices are told to type leads to a plan."""
    with pytest.raises(UserError) as caught:
        plan_batches(load_recipe("imagenet1k_tiny", edits), 3)
    offers = [word.strip(",;()") for word in str(caught.value).split() if "=" in word.strip("=")]
    assert offers[-2:] == ["optimizer.lr_scaling=linear", "optimizer.lr_scaling=none"]
    for choice in offers[-2:]:
        plan = plan_batches(load_recipe("imagenet1k_tiny", [*edits, *offers[:-2], choice]), 3)
        assert plan.total_batch % 3 == 0


def test_a_device_batch_too_large_is_answered_with_one_that_fits() -> None:
    recipe = load_recipe("imagenet1k_tiny", ["train.device_batch=512"])
    with pytest.raises(UserError, match=r"16 devices x train.device_batch 512 = 8192; type train.device_batch=256$"):
        plan_batches(recipe, 16)


def test_a_scaled_rate_below_the_cosines_end_is_refused() -> None:
    edits = ["train.total_batch=1", "train.device_batch=1", "optimizer.lr_scaling=linear"]
    with pytest.raises(UserError, match=r"below optimizer\.min_lr"):
        plan_batches(load_recipe("imagenet1k_tiny", edits))


def test_image_count_follows_the_recipes_own_limits() -> None:
    assert train_image_count(load_recipe("cifar10_micro")) == 50000
    assert train_image_count(load_recipe("cifar10_micro", ["data.val_fraction=0.1"])) == 45000
    assert train_image_count(load_recipe("cifar10_micro", ["data.max_train_images=1000"])) == 1000
    assert train_image_count(load_recipe("cifar10_micro", ["data.num_train_images=null"])) is None


def rows(text: str) -> list[list[str]]:
    table = text[text.index("\nschedule  ") + 1 :]
    return [line.replace("learning rate", "lr").replace("drop path", "drop").split() for line in table.splitlines()]


def test_print_shows_batch_steps_and_corner_points() -> None:
    text = describe(load_recipe("imagenet1k_small"), num_devices=8)
    assert "total batch      4096 = 8 devices x device batch 128 x accumulation 4" in text
    assert "312 per epoch (1281167 training images, 3215 left out), 93600 in 300 epochs" in text
    assert "softness:" in text.splitlines()[text.splitlines().index("schedule:") + 3]
    assert rows(text)[1:] == [
        ["lr", "0", "0", "0"],
        ["lr", "1559", "4", "0.004"],
        ["lr", "1560", "5", "0.004"],
        ["lr", "93599", "299", "1e-06"],
        ["softness", "0", "0", "1"],
        ["softness", "15599", "49", "0"],
        ["softness", "15600", "50", "0"],
        ["softness", "93599", "299", "0"],
        ["drop", "0", "0", "0.1"],
        ["drop", "93599", "299", "0.1"],
    ]


def test_print_shows_an_early_drop_path_and_a_scaled_rate() -> None:
    edits = ["schedule.drop_path.mode=early", "schedule.drop_path.cutoff_epochs=10"]
    edits += ["train.total_batch=1024", "optimizer.lr_scaling=linear", "data.num_train_images=2048"]
    text = describe(load_recipe("imagenet1k_small", edits))
    assert "learning rate    0.001 (lr_scaling linear; 0.004 belongs to a total batch of 4096)" in text
    assert [row for row in rows(text) if row[0] == "drop"] == [
        ["drop", "0", "0", "0.1"],
        ["drop", "19", "9", "0.1"],
        ["drop", "20", "10", "0"],
        ["drop", "599", "299", "0"],
    ]


def test_print_shows_patches_and_mixing_that_change() -> None:
    edits = ["schedule.patch_drop={rate: 0.5, cutoff_epochs: 160}", "schedule.mixing={mode: early, cutoff_epochs: 190}"]
    found = [row for row in rows(describe(load_recipe("cifar10_tiny", edits))) if row[0] in ("patches", "mixing")]
    assert [row[2:] for row in found] == [
        *(["0", "32"], ["159", "32"], ["160", "64"], ["199", "64"]),
        *(["0", "1"], ["189", "1"], ["190", "0"], ["199", "0"]),
    ]


def test_print_without_known_data_counts_in_epochs() -> None:
    text = describe(load_recipe("imagenet1k_tiny", ["data.num_train_images=null"]))
    assert "known once the data is opened" in text
    assert ["softness", "50", "0"] in rows(text)


def test_print_tells_an_impossible_batch() -> None:
    text = describe(load_recipe("imagenet1k_tiny", ["train.total_batch=1024"]))
    assert "not possible: train.total_batch is 1024" in text
    too_few = ["data.num_train_images=64", "data.val_fraction=0.5", "train.total_batch=64", "train.device_batch=64"]
    text = describe(load_recipe("imagenet1k_tiny", [*too_few, "optimizer.lr_batch=64"]))
    assert "none: 32 training images do not fill a total batch" in text


def test_recipes_load_without_torch() -> None:
    code = (
        "import sys; from illama.recipes import load_recipe; from illama.cli.recipes import describe; "
        "describe(load_recipe('digits_micro')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
