"""Evaluation counts every image once, for any number of processes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from illama.data import EvalTransform
from illama.data.decode.images import BrokenImage
from illama.data.source import Source
from illama.distributed import join_world
from illama.evaluation import EvalResult, evaluate_model
from illama.models import ILlama, ModelConfig
from tests.processes import in_processes

IMAGES, BROKEN = 41, (7, 30)  # of 39 readable ones the sharing out leaves some over on 2 processes, of 41 on 2 and 3
CONFIG = ModelConfig(img_size=8, patch_size=2, in_chans=1, num_classes=10, embed_dim=16, depth=2, num_heads=2)
TRANSFORM = EvalTransform((8, 8), mean=(0.5,), std=(0.5,), mode="none", in_chans=1)


class Noise(Source):
    """Images of noise, two of them broken."""

    def __init__(self, count: int) -> None:
        self.classes = tuple(str(i) for i in range(10))
        self.labels = np.arange(count) % 10
        self.description = f"{count} images of noise"

    def read(self, i: int) -> Image.Image:
        if i in BROKEN:
            raise BrokenImage(self.location(i), "broken on purpose")
        return Image.fromarray(np.random.default_rng(i).integers(256, size=(8, 8), dtype=np.uint8))

    def location(self, i: int) -> str:
        return f"noise {i}"


CASES = list(itertools.product([IMAGES, 2, 40], [False, True], [True, False]))  # images, sharded, in memory


def results_of() -> list[EvalResult]:
    from illama.data.loading import loader as loaders
    from illama.training.objective import shard_model

    results, kept = [], loaders.EVAL_MAX_BYTES
    with join_world("cpu") as (world, device):
        for count, sharded, in_memory in CASES:
            loaders.EVAL_MAX_BYTES = kept if in_memory else 0
            torch.manual_seed(0)
            model = ILlama(CONFIG)
            torch.nn.init.normal_(model.head.weight)  # else every image gets the same class
            if sharded and world.size > 1:
                shard_model(model, device)
            loader = loaders.EvalLoader(Noise(count), TRANSFORM, 4, device, workers=0, world=world)
            results.append(evaluate_model(model, loader, 10, world=world))
    return results


def test_the_result_does_not_depend_on_the_number_of_processes() -> None:
    """Nor on where the weights and the images are."""
    (alone,) = in_processes(1, results_of)
    for (count, _, _), one in zip(CASES, alone, strict=True):
        assert one.count == count - sum(i < count for i in BROKEN)
    for processes in (2, 3):
        for results in in_processes(processes, results_of):
            for case, one, several in zip(CASES, alone, results, strict=True):
                assert (several.top1, several.top5, several.count) == (one.top1, one.top5, one.count), case
                assert (several.class_hits, several.class_counts) == (one.class_hits, one.class_counts), case
                assert several.loss == pytest.approx(one.loss, rel=1e-6), case
                assert several.skipped == one.skipped, case
