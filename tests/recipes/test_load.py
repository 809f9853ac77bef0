"""Files, bases, overrides and variants; what a wrong recipe is told, all of it at once."""

from __future__ import annotations

import dataclasses
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import ValidationError

from illama.errors import UserError
from illama.models import ModelConfig
from illama.recipes import Recipe, SoftnessConfig, list_recipes, load_recipe, parse_recipe, recipe_diff

SMALL = """
model: {variant: tiny, drop_path: 1e-1}
optimizer: {lr: 1e-3, lr_batch: 64}
schedule: {epochs: 10}
train: {total_batch: 64}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def message(name_or_path: str | Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(name_or_path, overrides)
    return str(caught.value)


def test_file_is_read_with_defaults_and_variant(small: Path) -> None:
    recipe = load_recipe(small)
    assert recipe.name == "small"
    assert recipe.model == ModelConfig(embed_dim=192, depth=12, num_heads=3, drop_path=0.1)
    assert (recipe.optimizer.lr, recipe.schedule.warmup_epochs, recipe.seed) == (1e-3, 0, 0)


def test_overrides_are_yaml_values_and_the_last_one_wins(small: Path) -> None:
    recipe = load_recipe(
        small,
        [
            "optimizer.lr=5",
            "optimizer.lr=2e-3",
            "data.path=../some/where",
            "optimizer.betas=[0.8, 0.99]",
            "train.compile=true",
            "model.img_size=[64, 32]",
            "data.workers=2",
            "optimizer.clip_grad=1",
            "schedule.softness.cutoff_epochs=3",
            "name=other",
        ],
    )
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.optimizer.clip_grad) == (2e-3, (0.8, 0.99), 1.0)
    assert (recipe.data.path, recipe.data.workers, recipe.train.compile) == ("../some/where", 2, True)
    assert recipe.model.img_size == (64, 32)
    assert (recipe.schedule.softness.cutoff_epochs, recipe.name) == (3, "other")
    assert parse_recipe(recipe.to_dict()) == recipe


def test_variant_in_an_override_replaces_the_sizes_of_the_file() -> None:
    model = load_recipe("digits_micro", ["model.variant=small", "model.depth=2"]).model
    assert (model.embed_dim, model.depth, model.num_heads, model.img_size) == (384, 2, 6, 8)


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "+1e-3", "0.001", "1.0e-3"])
def test_numbers_with_exponents_are_numbers(small: Path, text: str) -> None:
    assert load_recipe(small, [f"optimizer.lr={text}"]).optimizer.lr == 1e-3


def test_text_that_looks_like_a_number_survives_the_round_trip(small: Path, tmp_path: Path) -> None:
    recipe = load_recipe(small, ["data.path='1e-3'", "data.train_split='2024-01-01'"])
    file = tmp_path / "back.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file) == recipe
    assert recipe.data.path == "1e-3"


def test_one_problem_is_one_line(small: Path) -> None:
    text = message(small, "train.warmup_epoch=3")
    assert text == f"{small}: train.warmup_epoch: unknown key; did you mean schedule.warmup_epochs?"


def test_all_problems_come_in_one_message(small: Path) -> None:
    text = message(
        small,
        "lr=1",
        "augmnt.mixup=1",
        "augment.hflip=3",
        "augment.randaugment=strong",
        "data.workers=many",
        "model.embed_dim=wide",
        "model.drop_path=2",
        "model.fnn=mlp",
        "optimizer.lr=fast",
        "optimizer.betas=[0.9, 1]",
        "train.loss=bce",
        "train.compile=1",
        "schedule.epochs=1.5",
        "schedule.softness.value=-1",
        "seed",
        "data.path=[",
    )
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in text.splitlines()[1:]}
    assert text.splitlines()[0] == f"{small} has 16 problems"
    assert len(lines) == 16
    assert lines["lr"] == "unknown key; did you mean optimizer.lr?"
    assert lines["augmnt"] == "unknown key; did you mean augment?"
    assert lines["augment.hflip"] == "allowed: 0 to 1, given 3"
    assert lines["augment.randaugment"] == 'allowed: text like rand-m9-mstd0.5-inc1 or null, given "strong"'
    assert lines["data.workers"] == 'allowed: whole numbers 0 to 1024 or auto, given "many"'
    assert lines["model.embed_dim"] == 'allowed: a whole number, given "wide"'
    assert lines["model.drop_path"] == "2 is not a rate from 0 to 1 (1 excluded)"
    assert lines["model.fnn"] == "unknown key; did you mean model.ffn?"
    assert lines["optimizer.lr"] == 'allowed: above 0, given "fast"'
    assert lines["optimizer.betas"].startswith("allowed: a list of 2 values, each 0 to 1 (1 excluded), given")
    assert lines["train.loss"] == 'allowed: auto, cross_entropy or soft_target, given "bce"'
    assert lines["train.compile"] == "allowed: true or false, given 1"
    assert lines["schedule.epochs"] == "allowed: whole numbers 1 to 1000000, given 1.5"
    assert lines["schedule.softness.value"] == "allowed: 0 to 1, given -1"
    assert lines["seed"].startswith("an override is key=value")
    assert lines["data.path"].startswith("not a YAML value")


def test_impossible_pairs_are_told_beside_wrong_values(small: Path) -> None:
    text = message(small, "augment.hflip=2", "schedule.warmup_epochs=11", "model.img_size=225", "train.total_batch=x")
    lines = text.splitlines()[1:]
    assert len(lines) == 4
    assert [line.split()[0] for line in lines] == [
        "model.img_size",
        "augment.hflip",
        "schedule.warmup_epochs",
        "train.total_batch",
    ]
    assert "225 is not a positive multiple of patch_size (16)" in text
    assert "allowed: 0 to schedule.epochs (10), given 11" in text


IMPOSSIBLE = {
    "train.loss": ["train.loss=cross_entropy", "augment.cutmix=1"],
    "augment.mix_prob": ["augment.mixup=1", "augment.mix_prob=0"],
    "augment.color_jitter": ["augment.color_jitter=0.4", "augment.randaugment=rand-m9"],
    "augment.crop_scale": ["augment.crop_scale=[0.5, 0.1]"],
    "augment.crop_ratio": ["augment.crop_ratio=[2, 1]"],
    "augment.crop": ["augment.crop=pad", "augment.crop_padding=0"],
    "augment.crop ": ["augment.crop_padding=16", "model.img_size=16"],
    "schedule.warmup_epochs": ["schedule.warmup_epochs=11"],
    "schedule.softness.cutoff_epochs": ["schedule.softness.cutoff_epochs=11"],
    "schedule.drop_path.cutoff_epochs": ["schedule.drop_path.cutoff_epochs=11", "schedule.drop_path.mode=early"],
    "schedule.softness.mode": ["schedule.softness.mode=standard", "schedule.softness.cutoff_epochs=2"],
    "schedule.drop_path.mode": ["schedule.drop_path.mode=late", "schedule.drop_path.shape=linear"],
    "schedule.drop_path.mode ": ["schedule.drop_path.mode=early", "model.drop_path=0"],
    "schedule.drop_path.mode  ": ["schedule.drop_path.cutoff_epochs=2"],
    "model.mask": ["model.mask=none", "schedule.softness.cutoff_epochs=2"],
    "model.num_classes": ["model.num_classes=0"],
    "model.global_pool": ["model.global_pool=''"],
    "model.num_heads": ["model.num_heads=5"],
    "schedule.patch_drop.cutoff_epochs": ["schedule.patch_drop={rate: 0.5, cutoff_epochs: 11}"],
    "schedule.patch_drop.cutoff_epochs ": ["schedule.patch_drop.rate=0.5"],
    "schedule.patch_drop.cutoff_epochs  ": ["schedule.patch_drop.cutoff_epochs=3"],
    "schedule.patch_drop.rate": ["schedule.patch_drop={rate: 0.002, cutoff_epochs: 3}"],
    "schedule.patch_drop.rate ": ["schedule.patch_drop={rate: 0.998, cutoff_epochs: 3}"],
    "schedule.mixing.cutoff_epochs": ["schedule.mixing={mode: late, cutoff_epochs: 11}", "augment.mixup=1"],
    "schedule.mixing.cutoff_epochs ": ["schedule.mixing.cutoff_epochs=3", "augment.mixup=1"],
    "schedule.mixing.mode": ["schedule.mixing={mode: late, cutoff_epochs: 3}"],
    "optimizer.name": ["optimizer.name=muon", "train.parallel=fsdp"],
    "optimizer.min_lr": ["optimizer.min_lr=1"],
    "train.total_batch": ["train.device_batch=48"],
    "train.total_batch ": ["data.max_train_images=63"],
    "data.val_fraction": ["data.val_fraction=0.1", "data.eval_split=test"],
    "data.val_fraction ": ["data.val_fraction=0.1", "data.name=digits"],
    "data.path": ["data.path=x", "data.name=digits"],
    "data.mean": ["data.mean=[0.5]"],
    "data.std": ["data.std=[0.5]"],
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_values_that_cannot_stand_together_are_refused(small: Path, key: str) -> None:
    text = message(small, *IMPOSSIBLE[key])
    assert text.startswith(f"{small}: {key.strip()}: ")
    assert "\n" not in text


def test_missing_keys_and_wrong_sections_are_named(tmp_path: Path) -> None:
    file = tmp_path / "bare.yaml"
    file.write_text("optimizer: {lr: 1}\nschedule: 5\nmodel: {variant: tny}\n")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in message(file).splitlines()[1:]}
    assert lines == {
        "model.variant": "unknown model variant 'tny'; did you mean tiny?",
        "optimizer.lr_batch": "missing; allowed: whole numbers 1 to 2147483647",
        "schedule": "allowed: a section of keys, given 5",
        "train": "missing; the section is required",
    }


def test_unknown_names_answer_with_the_nearest(tmp_path: Path) -> None:
    assert "did you mean digits_micro?" in message("digit_micro")
    assert "does not exist" in message(tmp_path / "none.yaml")
    assert "does not exist" in message("some/where")
    assert "unknown recipe '_imagenet'" in message("_imagenet")
    assert "_imagenet" not in list_recipes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [1", "is not YAML"),
        ("a: 1\nb: {c: 1, c: 2}", "the key 'c' stands twice in one section (line 2"),
        ("- 1", "holds no `key: value` lines"),
        ("", "holds no `key: value` lines"),
        ("base: [x, y]", "base: allowed: the name or path of one recipe"),
        ("base: digit_micro", "base: unknown recipe 'digit_micro'; did you mean digits_micro?"),
        ("base: other.yaml", "does not exist"),
        ("base: broken.yaml", "in a circle"),
    ],
)
def test_broken_files_are_told_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    found = message(file)
    assert told in found
    assert "\n" not in found
    assert str(file) in found


def test_base_gives_what_the_recipe_leaves_open(small: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("base: small.yaml\nmodel: {variant: small}\nschedule: {warmup_epochs: 2}\n")
    recipe = load_recipe(child)
    changes = {change.key: change.new for change in recipe_diff(load_recipe(small), recipe)}
    assert changes == {
        "name": "child",
        "model.embed_dim": 384,
        "model.num_heads": 6,
        "schedule.warmup_epochs": 2,
    }
    child.write_text("base: imagenet1k_tiny\nname: mine\ndata: {path: here}\n")
    assert [change.key for change in recipe_diff(load_recipe("imagenet1k_tiny"), load_recipe(child))] == [
        "name",
        "data.path",
    ]


def test_diff_names_keys_with_both_values(small: Path) -> None:
    old = load_recipe(small)
    new = load_recipe(small, ["optimizer.lr=2e-3", "model.img_size=[32, 64]", "optimizer.betas=[0.9, 0.95]"])
    assert recipe_diff(old, old) == []
    assert [str(change) for change in recipe_diff(old, new)] == [
        "model.img_size: 224 -> [32, 64]",
        "optimizer.lr: 0.001 -> 0.002",
        "optimizer.betas: [0.9, 0.999] -> [0.9, 0.95]",
    ]


def test_recipes_built_in_python_obey_the_same_rules(small: Path) -> None:
    recipe = load_recipe(small)
    parts = {name: getattr(recipe, name) for name in Recipe.model_fields}
    assert Recipe(**parts) == recipe
    with pytest.raises(ValidationError, match=r"allowed: at least 2, or auto .*, given 1"):
        Recipe(**parts | {"model": dataclasses.replace(recipe.model, num_classes=1)})
    with pytest.raises(ValidationError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        SoftnessConfig(value=2)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9)}]\n" for below, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BOMB, r"\*a: aliases are not read"),
        ("model: &m\n  depth: *m\n", "aliases are not read"),
        ("seed: " + "[" * 100_000, "brackets too deep"),
        ("seed: " + "{a: " * 5_000, "brackets too deep"),
        ("seed: 2026-13-45\n", "month must be in 1..12"),
        ("seed: 2026-02-30 25:61:61\n", "hour must be|day is out of range"),
        ("seed: " + "9" * 5_000 + "\n", "a number of more than 1000 digits"),
        ("seed: 0x" + "f" * 5_000 + "\n", "Exceeds the limit .4300 digits."),
        ("seed: 190:20:30:" + "1:" * 400 + "1\n", "seed: allowed"),
        ("? [1, 2]\n: 3\n", "unhashable|keys must be"),
        ('seed: "\\ud800"\n', "."),
        ("seed: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("x" * (2 << 20), "longer than 1048576 characters"),
        ("seed: .inf\n", "seed: allowed"),
        ("\0", "special characters are not allowed"),
        ('name: "a\\0b"\n', "a NUL"),
    ],
)
def test_hostile_files_are_told_in_one_line_at_once(small: Path, tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_text(small.read_text() + text)
    line = message(file)
    assert "\n" not in line
    assert len(line) < 5_000
    assert re.search(told, line), line


@pytest.mark.parametrize("key", ["schedule.epochs", "schedule.warmup_epochs", "schedule.softness.cutoff_epochs"])
def test_endless_runs_are_refused(small: Path, key: str) -> None:
    assert f"{key}: allowed: whole numbers" in message(small, f"{key}={10**30}")


@pytest.mark.parametrize("key", ["optimizer.lr_batch", "train.total_batch", "data.max_image_pixels", "data.workers"])
def test_numbers_that_no_machine_holds_are_refused(small: Path, key: str) -> None:
    for number in (2**31, 10**30, 10**400):
        assert f"{key}: allowed: whole numbers" in message(small, f"{key}={number}")


@pytest.mark.parametrize(
    "key", ["", ".", "../../x", "model.", ".model", "a\nillama: error: forged", "\x1b[31m", "x" * 1000]
)
def test_keys_that_are_no_keys(small: Path, tmp_path: Path, key: str) -> None:
    """As overrides and as keys of a file: each is told in one line, as it can be shown."""
    file = tmp_path / "odd.yaml"
    file.write_text(small.read_text() + json.dumps(key) + ": 1\n")
    for line in (message(small, f"{key}=1"), message(file)):
        assert "unknown key" in line or "an override is key=value" in line
        assert "\n" not in line
        assert "\x1b" not in line
        assert len(line) < 1500


def test_a_recipe_that_has_no_end(tmp_path: Path) -> None:
    for size in (5 << 20, 40 << 30):
        file = tmp_path / "sparse.yaml"
        with file.open("wb") as opened:
            opened.truncate(size)
        assert "bytes are too many" in message(file)


@pytest.mark.parametrize("override", ["\udcff\udcfe=0", "train.\ud800=1", "data.pa\udfffth=x", "\udcff.a.b=[1]"])
def test_keys_that_are_no_text_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="not UTF-8") as caught:
        load_recipe("digits_micro", [override])
    str(caught.value).encode()


def test_a_recipe_of_others_with_texts_that_are_none() -> None:
    """As it may stand in the header of weights."""
    for change in ({"\udcff": 1}, {"name": "a\udcff"}, {"data": {"path": "\ud800"}}, {"data": {"mean": ["\udc00"]}}):
        with pytest.raises(UserError, match="not UTF-8"):
            parse_recipe(load_recipe("digits_micro").to_dict() | change)
