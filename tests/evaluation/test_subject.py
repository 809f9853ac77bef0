"""What is judged: the images that a recipe or the caller means, and samples of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from illama.checkpoint import load_model, save_weights
from illama.errors import UserError
from illama.evaluation.subject import choose_data, open_subject
from illama.recipes import load_recipe


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
