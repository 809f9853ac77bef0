"""Evaluation from paths: the recipe's own data, other data, and what is missing."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import illama
from illama.checkpoint import Meta, save_weights
from illama.data import EvalTransform
from illama.errors import UserError
from illama.evaluation.subject import choose_data
from illama.models import ILlama, ModelConfig
from illama.optional import import_timm
from illama.recipes import load_recipe
from illama.weights import load_model


def test_a_run_is_evaluated_on_its_own_data(digits_run: Path) -> None:
    result = illama.evaluate(digits_run, device="cpu")
    assert result.count == 360
    assert sum(result.class_counts) == 360
    assert result.classes == tuple(map(str, range(10)))
    assert result.softness == 0.5
    assert "digits" in result.data
    assert illama.evaluate(digits_run, device="cpu", batch_size=7).top1 == result.top1
    assert illama.evaluate(digits_run, device="cpu", softness=0).softness == 0
    assert illama.evaluate(digits_run, device="cpu", split="train").count == 1437


def test_a_folder_with_some_of_the_classes_keeps_their_numbers(digits_run: Path, tmp_path: Path) -> None:
    for name in ("3", "7"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("L", (8, 8), 99).save(tmp_path / "data" / split / name / "a.png")
    result = illama.evaluate(digits_run, data=str(tmp_path / "data"), device="cpu")
    assert result.count == 2
    assert [i for i, count in enumerate(result.class_counts) if count] == [3, 7]


def test_weights_of_others_are_evaluated_on_imagenets_classes(tmp_path: Path) -> None:
    """A ViT of timm as it saves it, on some of ImageNet's folders: their classes keep ImageNet's numbers."""
    for name in ("n01440764", "n15075141"):
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            Image.new("RGB", (40, 30), (9, 99, 199)).save(tmp_path / "data" / split / name / "a.png")
    model = import_timm().create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with torch.no_grad():
        model.head.bias[999] = 9.0
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    result = illama.evaluate(tmp_path / "vit.pth", data=str(tmp_path / "data"), device="cpu")
    assert (result.top1, len(result.class_counts)) == (50.0, 1000)
    assert [i for i, count in enumerate(result.class_counts) if count] == [0, 999]
    assert result.weights == str(tmp_path / "vit.pth")


def test_unknown_data_and_device_are_refused(digits_run: Path) -> None:
    with pytest.raises(UserError, match="does not exist and is no data set's name"):
        illama.evaluate(digits_run, data="no/such/folder", device="cpu")
    with pytest.raises(UserError, match="cuda:99"):
        illama.evaluate(digits_run, device="cuda:99")


def test_weights_without_recipe_or_transform(digits_run: Path, tmp_path: Path) -> None:
    model, meta = load_model(digits_run)
    bare = tmp_path / "bare.safetensors"
    save_weights(bare, model.state_dict(), dataclasses.replace(meta, recipe=None))
    with pytest.raises(UserError, match="--data"):
        illama.evaluate(bare, device="cpu")
    assert illama.evaluate(bare, data="digits", device="cpu", split="test").count == 360
    save_weights(bare, model.state_dict(), dataclasses.replace(meta, eval_transform=None))
    with pytest.raises(UserError, match="resized and normalised"):
        illama.evaluate(bare, device="cpu")


def test_limits_belong_to_the_recipes_own_data(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    recipe = load_recipe(
        "cifar10_micro", [f"data.path={tmp_path / 'a'}", "data.max_eval_images=5", "data.val_fraction=0.1"]
    )
    same = choose_data(recipe, str(tmp_path / "b" / ".." / "a"))
    assert same == recipe.data
    other = choose_data(recipe, str(tmp_path / "b"))
    assert (other.path, other.max_eval_images, other.val_fraction) == (str(tmp_path / "b"), None, 0.0)
    assert choose_data(recipe, None) == recipe.data
    digits = choose_data(recipe, "digits")
    assert (digits.name, digits.path) == ("digits", None)


def test_the_public_name_is_a_function_whatever_was_imported_before() -> None:
    script = (
        "import illama.evaluation.scores, illama, illama.errors\n"
        "for _ in range(2):\n"
        "    try: illama.evaluate('no/such/run', device='cpu')\n"
        "    except illama.UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("no run, checkpoint or weights file no/such/run") == 2


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_without_images_is_refused(digits_run: Path, size: int) -> None:
    with pytest.raises(UserError, match=f"the batch size must be at least 1; got {size}"):
        illama.evaluate(digits_run, device="cpu", batch_size=size)


def test_a_network_without_head_says_what_it_is_good_for(tmp_path: Path) -> None:
    model = ILlama(ModelConfig(img_size=8, patch_size=2, in_chans=1, num_classes=0, embed_dim=8, depth=1, num_heads=2))
    transform = EvalTransform((8, 8), mean=(0.5,), std=(0.5,), mode="none", in_chans=1).to_dict()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), Meta(config=model.config, eval_transform=transform))
    with pytest.raises(UserError, match="no head, so it names no class; illama features"):
        illama.evaluate(tmp_path / "w.safetensors", data="digits", device="cpu")
