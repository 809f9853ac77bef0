"""A training run of seconds on real digits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from illama.recipes import Recipe, load_recipe

TOY = (
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path=0.2",
    "schedule.epochs=3",
    "schedule.warmup_epochs=1",
    "schedule.softness.cutoff_epochs=2",
    "data.max_train_images=160",
    "data.max_eval_images=40",
    "train.total_batch=32",
    "optimizer.lr_batch=32",
    "train.log_every_steps=2",
    "train.eval_batch=40",
)
# Heads of 32: narrower ones are none that the Triton kernels serve.
ON_CUDA = ("model.embed_dim=64",)


@pytest.fixture
def toy() -> Callable[..., Recipe]:
    """The digits recipe at toy size: 5 steps per epoch, 15 in all; more overrides win."""
    return lambda *overrides: load_recipe("digits_micro", [*TOY, *overrides])


CIFAR = (
    "model.embed_dim=16",
    "model.depth=2",
    "model.num_heads=2",
    "model.drop_path=0.2",
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "schedule.softness.cutoff_epochs=1",
    "data.max_train_images=96",
    "data.max_eval_images=33",
    "train.total_batch=32",
    "optimizer.lr_batch=32",
    "train.precision=float32",
    "augment.randaugment=rand-m9-mstd0.5-inc1",
    "augment.erase_prob=0.25",
    "augment.mixup=0.3",
)


@pytest.fixture
def cifar() -> Callable[..., Recipe]:
    """The CIFAR-10 recipe at toy size, with all that augmentation can do."""
    return lambda *overrides: load_recipe("cifar10_micro", [*CIFAR, *overrides])
