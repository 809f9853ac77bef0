"""A second task, as small as can be: the class of each pixel of painted squares and discs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from illama.data import EvalLoader, EvalTransform, Source
from illama.data.augment.batched import BatchedAugment, shift
from illama.data.eval_transform import to_tensor
from illama.data.rng import Draws
from illama.data.targets import SampleTransform, Targets
from illama.distributed import World
from illama.evaluation.classify import evaluating
from illama.models import ILlama
from illama.recipes import Recipe, load_recipe
from illama.report.formats import save_png
from illama.tasks import TASKS, Score, TaskEntry
from illama.tasks.task import Forward, Judgement, Loss, Task, TaskData

SIDE, NOTHING = 16, 0
CLASSES = ("nothing", "square", "disc")
LEVELS = (40, 120, 220)  # grey of each class: what augmentation does to the mask can be read off the image
OVERRIDES = (
    "name=shapes",
    "task=shapes",
    f"model={{img_size: {SIDE}, patch_size: 4, embed_dim: 32, depth: 2, num_heads: 2, num_classes: {len(CLASSES)}}}",
    "model.drop_path=0.1",
    "augment={crop_padding: 2, hflip: 0.5, rotate: 0, label_smoothing: 0}",
    "schedule.epochs=4",
    "schedule.warmup_epochs=1",
    "schedule.softness.cutoff_epochs=2",
    "train.total_batch=16",
    "optimizer.lr_batch=16",
    "optimizer.lr=5e-3",
    "train.log_every_steps=2",
    "train.ema_decay=0.9",
    "train.eval_batch=16",
)


def shapes_recipe(*overrides: str) -> Recipe:
    """20 steps an epoch; more overrides win."""
    return load_recipe("digits_micro", [*OVERRIDES, *overrides])


class Shapes(Source):
    """Images with one shape each, on black, with noise."""

    in_chans = 1

    def __init__(self, count: int, seed: int) -> None:
        self.classes = CLASSES
        self.labels = 1 + np.arange(count) % 2
        self.description = f"{count} painted shapes"
        self._seed = seed

    def target(self, i: int) -> Tensor:
        top, left, radius = np.random.default_rng((self._seed, i)).integers((5, 5, 3), (11, 11, 5), 3)
        down, right = np.indices((SIDE, SIDE)) - np.reshape((top, left), (2, 1, 1))
        inside = np.maximum(abs(down), abs(right)) <= radius if self.labels[i] == 1 else down**2 + right**2 <= radius**2
        return torch.from_numpy(np.where(inside, self.labels[i], NOTHING))

    def read(self, i: int) -> Image.Image:
        noise = np.random.default_rng((self._seed, i, 1)).integers(-20, 21, (SIDE, SIDE))
        return Image.fromarray((np.array(LEVELS)[self.target(i).numpy()] + noise).astype(np.uint8))

    def location(self, i: int) -> str:
        return f"shape {i}"


@dataclass(frozen=True)
class _Jointly:
    """A random padded crop and flip of picture and mask, by the same draws; black is nothing."""

    padding: int
    hflip: float

    def __call__(self, picture: Any, mask: Tensor) -> tuple[Tensor, Tensor]:
        left, top = (random.randint(-self.padding, self.padding) for _ in range(2))
        image = picture.image().crop((left, top, left + SIDE, top + SIDE))
        windows = F.pad(mask, (self.padding,) * 4)
        mask = windows[self.padding + top :][:SIDE, self.padding + left :][:, :SIDE]
        pixels = to_tensor(image)
        return (pixels.flip(-1), mask.flip(-1)) if random.random() < self.hflip else (pixels, mask)


@dataclass(frozen=True)
class _JointlyByBatches:
    augment: BatchedAugment

    def draw(self, draws: Draws, height: int, width: int) -> Any:
        return self.augment.draw(draws, height, width)

    def apply(self, images: Tensor, masks: Tensor, plan: Any) -> tuple[Tensor, Tensor]:
        masks = shift(masks[:, None], self.augment.padding, *plan.corner)[:, 0]
        masks = torch.where(plan.flipped[:, None, None], masks.flip(-1), masks)
        return self.augment.apply(images, plan), masks


def _as_they_are(image: Image.Image, mask: Tensor) -> tuple[Tensor, Tensor]:
    return to_tensor(image), mask


class PixelClasses(Targets):
    """(H, W) int64."""

    def shape(self, size: tuple[int, int]) -> tuple[int, ...]:
        return size

    def fitted(self, size: tuple[int, int]) -> SampleTransform:
        return _as_they_are

    def evaluated(self, transform: EvalTransform) -> SampleTransform:
        return _as_they_are

    def per_image(self, recipe: Recipe, crop: str, *, on_device: bool) -> SampleTransform:
        return _Jointly(recipe.augment.crop_padding, recipe.augment.hflip)

    def batched(self, recipe: Recipe, crop: str) -> _JointlyByBatches:
        return _JointlyByBatches(BatchedAugment.of(recipe, crop))


class PixelLlama(ILlama):
    """Every patch token says the classes of its pixels: (B, K, H, W)."""

    def _new_head(self) -> torch.nn.Module:
        return torch.nn.Linear(self.config.embed_dim, self.config.num_classes * self.config.patch_size**2)

    def forward(self, images: Tensor, kept: Tensor | None = None) -> Tensor:
        patches = self.head(self.forward_features(images)[:, :-1])
        return F.fold(patches.transpose(1, 2), images.shape[2:], self.config.patch_size, stride=self.config.patch_size)


class ShapesTask(Task):
    """Mean intersection over union of the classes."""

    targets = PixelClasses()

    def open(self, recipe: Recipe, num_devices: int = 1) -> TaskData:
        return TaskData(recipe, Shapes(320, seed=0), Shapes(50, seed=1), ["shapes, painted anew each time"])

    def build_model(self, recipe: Recipe) -> ILlama:
        return PixelLlama(recipe.model)

    def loss(self, recipe: Recipe) -> Loss:
        return F.cross_entropy

    def example_targets(self, recipe: Recipe, batch: int, device: torch.device) -> Tensor:
        return torch.zeros(batch, *recipe.model.height_width, dtype=torch.int64, device=device)

    def judge(
        self, asked: Sequence[tuple[ILlama, float | None]], loader: EvalLoader, world: World, forward: Forward
    ) -> list[Judgement]:
        judgements = []
        for model, softness in asked:
            counts, loss, images = torch.zeros(len(CLASSES) ** 2, dtype=torch.int64), 0.0, 0
            with evaluating(model, softness):
                for batch in loader:
                    logits = forward(model, batch.images)
                    loss += len(batch.images) * float(F.cross_entropy(logits, batch.targets))
                    cells = batch.targets * len(CLASSES) + logits.argmax(1)
                    counts += torch.bincount(cells.flatten(), minlength=len(counts))
                    images += len(batch.images)
            shares = world.gather((counts, loss, images))
            confusion = sum(share[0] for share in shares).view(len(CLASSES), -1)
            hits, count = confusion.diag(), sum(share[2] for share in shares)
            iou = hits / (confusion.sum(0) + confusion.sum(1) - hits)
            scores = {"miou": 100 * float(iou.mean()), "loss": sum(share[1] for share in shares) / count}
            judgements.append(Judgement(scores, count, dict(loader.skipped)))
        return judgements

    def draw_predictions(
        self, path: Path | None, model: ILlama, source: Source, transform: EvalTransform, device: torch.device
    ) -> None:
        from matplotlib.figure import Figure

        images = torch.stack([to_tensor(source.read(i)) for i in range(4)])
        with torch.no_grad():
            answers = model(transform.normalize(images, device)).argmax(1)
        figure = Figure()
        for place, (image, answer) in enumerate(zip(images, answers, strict=True)):
            figure.add_subplot(2, 4, place + 1).imshow(image[0].numpy())
            figure.add_subplot(2, 4, place + 5).imshow(answer.numpy())
        if path is not None:
            save_png(figure, path, dpi=60)


TASK = ShapesTask()
if "shapes" not in TASKS:
    TASKS.add("shapes", TaskEntry(Score("miou", "mIoU"), "tests.tasks.shapes"))
