"""One class for each image: cross-entropy, top-1, and a picture of some answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from illama.console.text import shown
from illama.data import BrokenImage, EvalLoader, EvalTransform, Source
from illama.data.targets import CLASS_LABELS
from illama.distributed import World
from illama.errors import UserError
from illama.evaluation import evaluate_together
from illama.models import ILlama
from illama.recipes import Recipe
from illama.report.formats import BLUE, ORANGE, save_png
from illama.tasks.fit import fit_to_data
from illama.tasks.task import Forward, Judgement, Loss, Task, TaskData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike

    from illama.recipes.schema import AugmentConfig

SHOWN = 32  # images of predictions.png
CELL, WORDS, MARGIN = 1.6, 0.45, 0.08  # its inches: an image's width, two lines of text, what stays free


class Classification(Task):
    """Images with one class each."""

    targets = CLASS_LABELS

    def open(self, recipe: Recipe, num_devices: int = 1) -> TaskData:
        return fit_to_data(recipe, num_devices)

    def loss(self, recipe: Recipe) -> Loss:
        return build_loss(recipe.train.loss, recipe.augment)

    def example_targets(self, recipe: Recipe, batch: int, device: torch.device) -> Tensor:
        targets = torch.zeros(batch, recipe.model.num_classes, device=device)
        return targets if recipe.augment.mixes else targets[:, 0].long()

    def judge(
        self, asked: Sequence[tuple[ILlama, float | None]], loader: EvalLoader, world: World, forward: Forward
    ) -> list[Judgement]:
        results = evaluate_together(asked, loader, asked[0][0].num_classes, world=world, forward=forward)
        return [
            Judgement({"top1": one.top1, "top5": one.top5, "loss": one.loss}, one.count, one.skipped) for one in results
        ]

    def draw_predictions(
        self, path: Path | None, model: ILlama, source: Source, transform: EvalTransform, device: torch.device
    ) -> None:
        images, truths = [], []
        for index in np.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().astype(int):
            try:
                images.append(transform(source.read(int(index))))
            except BrokenImage:
                continue
            truths.append(int(source.labels[index]))
        if not images:
            return
        views = torch.stack(images)
        with torch.no_grad():
            probabilities = model(transform.normalize(views, device)).float().softmax(-1).cpu()
        best, predicted = probabilities.max(-1)
        if path is not None:
            draw_predictions(views, truths, predicted.tolist(), best.tolist(), source.classes, path)


TASK = Classification()


def build_loss(kind: str, augment: AugmentConfig) -> Loss:
    """The loss of a recipe, a function of (logits, targets).

    Args:
        kind: `train.loss`: "auto", "cross_entropy" (for classes) or "soft_target" (for mixup and cutmix).
        augment: Decides which targets come, and the label smoothing.

    Raises:
        UserError: The named loss does not fit the targets that the augmentation makes.
    """
    fitting = "soft_target" if augment.mixes else "cross_entropy"
    if kind not in ("auto", fitting):
        targets = "soft targets" if fitting == "soft_target" else "whole classes"
        raise UserError(f"train.loss={kind} does not fit {targets}; give train.loss={fitting} or auto")
    smoothing = augment.label_smoothing
    return lambda logits, targets: training_loss(logits, targets, smoothing)


def training_loss(logits: torch.Tensor, targets: torch.Tensor, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy of a batch, computed in float32.

    Args:
        logits: (B, K), any float type.
        targets: Classes (B,) int64, or soft targets (B, K) float (from mixup and cutmix).
        label_smoothing: Share of the target spread over all K classes. For classes only: soft targets carry
            theirs already.

    Returns:
        0-d float32.

    Raises:
        ValueError: Shape or type of the targets fits neither kind.
    """
    if targets.dtype == torch.int64 and targets.shape == logits.shape[:1]:
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    if targets.is_floating_point() and targets.shape == logits.shape:
        return -(targets * F.log_softmax(logits.float(), -1)).sum(-1).mean()
    raise ValueError(
        f"targets are {targets.dtype} {tuple(targets.shape)} for logits {tuple(logits.shape)}; "
        "allowed: classes (B,) int64, or soft targets (B, K) float"
    )


def draw_predictions(
    images: ArrayLike,
    truths: Sequence[int],
    predicted: Sequence[int],
    probabilities: Sequence[float],
    classes: Sequence[str],
    path: Path,
) -> Path:
    """Draw a grid of images with what the model says of them; wrong answers differ by colour, frame, sign and words.

    Args:
        images: (n, C, H, W) uint8, at least one image, one or three channels.
        truths: Right classes, (n,).
        predicted: The model's classes, (n,).
        probabilities: The model's probability of its answer, (n,), 0 to 1.
        classes: Class names.
        path: The picture to write.

    Raises:
        UserError: The picture cannot be written.
    """
    from matplotlib.figure import Figure

    pictures = np.asarray(images)
    columns = min(8, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    image_height = CELL * pictures.shape[2] / pictures.shape[3]
    width, height = max(CELL * columns, 4.0), (image_height + WORDS) * rows + WORDS
    figure = Figure(figsize=(width, height))
    # One system of coordinates, in inches from the upper left: one for each image would take ten times as long.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.set_autoscale_on(False)
    wrong = 0
    answers = zip(pictures, truths, predicted, probabilities, strict=True)
    for n, (image, truth, answer, probability) in enumerate(answers):
        wrong += truth != answer
        left, top = CELL * (n % columns), WORDS + (image_height + WORDS) * (n // columns)
        box = (left + MARGIN, left + CELL - MARGIN, top + image_height + WORDS - MARGIN, top + WORDS + MARGIN)
        _draw_answer(axes, image, box, classes[truth], classes[answer], float(probability))
    title = f"{len(pictures)} test images, {wrong} wrong (\N{BALLOT X})"
    axes.text(width / 2, WORDS / 2, title, fontsize=12, ha="center", va="center")
    return save_png(figure, path, dpi=110)


def _draw_answer(
    axes: Axes, image: np.ndarray, box: tuple[float, float, float, float], truth: str, answer: str, probability: float
) -> None:
    """In a box (left, right, bottom, top), with words above it."""
    from matplotlib.patches import Rectangle

    right = truth == answer
    picture = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    smooth = "nearest" if max(image.shape[1:]) <= 64 else "antialiased"
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation=smooth, extent=box, aspect="auto")
    color, line, width = (BLUE, "solid", 1.0) if right else (ORANGE, "dashed", 4.0)
    frame = (box[0], box[3]), box[1] - box[0], box[2] - box[3]
    axes.add_patch(Rectangle(*frame, fill=False, edgecolor=color, linewidth=width, linestyle=line))
    sign = "\N{CHECK MARK}" if right else "\N{BALLOT X}"
    said = f"{sign} {_short(answer)} ({100 * probability:.0f} %)"
    axes.text(
        (box[0] + box[1]) / 2,
        box[3] - MARGIN,
        said if right else f"{said}\nis {_short(truth)}",
        color=color,
        fontsize=8,
        weight="normal" if right else "bold",
        ha="center",
        va="bottom",
        parse_math=False,
    )


def _short(name: str) -> str:
    name = shown(name)
    return name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
