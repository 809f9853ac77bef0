"""What is judged: the images that a recipe or the caller means, and samples of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from illama.checkpoint import save_weights
from illama.errors import UserError
from illama.evaluation.classify import evaluate
from illama.evaluation.predict import predict
from illama.evaluation.subject import choose_data, open_subject
from illama.recipes import DataConfig, load_recipe
from illama.weights import load_model


def test_the_whole_evaluation_split_counts_elsewhere(tmp_path: Path) -> None:
    recipe = load_recipe("digits_micro")
    part = recipe.data.model_copy(update={"val_fraction": 0.1, "max_eval_images": 7})
    recipe = recipe.model_copy(update={"data": part})
    assert choose_data(recipe, None) == part
    for given in (str(tmp_path), "digits"):
        elsewhere = choose_data(recipe, given)
        assert (elsewhere.val_fraction, elsewhere.max_eval_images) == (0.0, None)


def test_the_recipes_seed_and_batch_are_those_of_the_images(digits_run: Path, tmp_path: Path) -> None:
    model, meta = load_model(digits_run)
    recipe = load_recipe("digits_micro")
    other = recipe.model_copy(update={"seed": 5, "train": recipe.train.model_copy(update={"eval_batch": 9})})
    file = tmp_path / "other.safetensors"
    save_weights(file, model.state_dict(), dataclasses.replace(meta, recipe=other.to_dict()))
    subject = open_subject(file, device="cpu")
    assert (subject.seed, subject.batch_size, subject.split) == (5, 9, "eval")


def test_a_sample_is_chosen_by_the_seed_and_keeps_the_order_of_the_source(digits_run: Path) -> None:
    subject = open_subject(digits_run, device="cpu")
    first, again, other = (subject.sample(20, seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images)
    assert first.positions.tolist() == sorted(set(first.positions.tolist())) != other.positions.tolist()
    assert first.labels.tolist() == [int(subject.source.labels[i]) for i in first.positions]
    assert len(subject.sample(9999).labels) == len(subject.source)
    with pytest.raises(UserError, match="the number of images must be at least 1; got 0"):
        subject.sample(0)


def test_weights_that_somebody_sent_open_nothing(digits_run: Path, tmp_path: Path) -> None:
    """Their recipe may name any folder, pattern or hub; a run folder of one's own may be opened as it says."""
    model, meta = load_model(digits_run)
    secret = tmp_path / "secret"
    (secret / "a").mkdir(parents=True)
    names = {"name": "auto", "path": str(secret), "eval_split": "x-{0..999999999}.tar", "class_depth": 2, "workers": 9}
    for data in (names, {"name": "wds/x", "path": "/"}, {"name": "hfds/some/where"}, {"name": "torch/cifar10"}):
        assert meta.recipe is not None
        sent = dataclasses.replace(meta, recipe={**meta.recipe, "data": {**meta.recipe["data"], **data}})
        save_weights(tmp_path / "w.safetensors", model.state_dict(), sent)
        with pytest.raises(UserError, match=r"belongs to no run here, .* is not opened; give the data with --data"):
            open_subject(tmp_path / "w.safetensors", device="cpu")
        given = open_subject(tmp_path / "w.safetensors", data=str(secret), device="cpu").data
        assert given == DataConfig(path=str(secret), class_depth=data.get("class_depth", 1))
    save_weights(tmp_path / "w.safetensors", model.state_dict(), meta)
    assert len(open_subject(tmp_path / "w.safetensors", device="cpu").source)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"img_size": [40000, 40000]}, "no height and width of 1 to 32768 pixels"),
        ({"img_size": [16, 16]}, r"prepares images of \(16, 16\) pixels in 1 channels, but its network takes \(8, 8\)"),
        ({"std": [1e-300]}, "std .* at least 1e-06"),
        ({"crop_pct": 1e-9}, "crop_pct 1e-09 is to be from 0.01"),
        ({"img_size": ["8", 8]}, "no height and width"),
    ],
)
def test_images_are_prepared_as_the_network_takes_them(
    changes: dict[str, Any], said: str, digits_run: Path, tmp_path: Path
) -> None:
    model, meta = load_model(digits_run)
    sent = dataclasses.replace(meta, eval_transform={**(meta.eval_transform or {}), **changes})
    save_weights(tmp_path / "w.safetensors", model.state_dict(), sent)
    with pytest.raises(UserError, match=said):
        open_subject(tmp_path / "w.safetensors", device="cpu")


def test_answers_that_are_no_numbers_are_refused(digits_run: Path, tmp_path: Path) -> None:
    """Finite weights whose products are not."""
    model, meta = load_model(digits_run)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
        model.norm.weight.fill_(3e38)
    save_weights(tmp_path / "w.safetensors", model.state_dict(), meta)
    with pytest.raises(UserError, match="answers with NaN or infinity; these weights cannot be judged"):
        evaluate(tmp_path / "w.safetensors", data="digits", device="cpu", save_logits=tmp_path / "l.safetensors")
    assert not (tmp_path / "l.safetensors").exists()
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    with pytest.raises(UserError, match="answers with NaN; these weights cannot be used"):
        predict(tmp_path / "w.safetensors", tmp_path / "x.png", device="cpu")
