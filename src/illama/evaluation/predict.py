"""Class names with probabilities for image files."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from illama.console.text import shown
from illama.data.decode.images import MAX_PIXELS, BrokenImage
from illama.data.sources.folder import FolderSource
from illama.data.sources.formats import picture_endings
from illama.data.sources.walk import PassedOver, files_matching, walk
from illama.errors import UserError
from illama.evaluation.classify import classify_each
from illama.evaluation.subject import needed_transform
from illama.weights import load_model

if TYPE_CHECKING:
    from illama.data.loading.batch import Batch

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
BATCH = 32  # images that the network sees at a time


@dataclass(frozen=True)
class Prediction:
    """What a model sees in one image.

    Attributes:
        path: The image file.
        classes: The most probable classes, best first; empty for an image that cannot be read.
        probabilities: Their softmax probabilities, 0 to 1.
        problem: Why the image cannot be read; None for a good one.
    """

    path: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = zip(self.classes, self.probabilities, strict=True)
        predictions = [{"class": name, "probability": probability} for name, probability in rows]
        return {"path": self.path, "predictions": predictions, "problem": self.problem}


def predict(
    checkpoint: Path | str,
    images: Path | str | Sequence[Path | str],
    *,
    top_k: int = 5,
    device: str | None = None,
) -> list[Prediction]:
    """Classify image files.

    Args:
        checkpoint: Whatever `illama.load_model` takes.
        images: Files, folders (searched to the bottom) and patterns such as "photos/*.jpg".
        top_k: How many classes to name; no more than there are.
        device: "cpu", "cuda", "cuda:1", "mps"; the best there is when None.

    Returns:
        One prediction for each image in the order given, folders and patterns sorted. An image that cannot be read
        has its `problem` set and does not stop the others.

    Raises:
        UserError: Checkpoint or device cannot be used, or a path, folder or pattern has no image.
    """
    from illama.data import EvalLoader
    from illama.device import resolve_device  # imported here: the training loop evaluates too

    if top_k < 1:
        raise UserError(f"top_k must be at least 1; got {top_k}")
    files = find_images([images] if isinstance(images, str | Path) else images)[0]
    target = resolve_device(device)
    model, meta = load_model(checkpoint, target)
    transform = needed_transform(meta, checkpoint)
    names = meta.classes or tuple(str(i) for i in range(meta.config.num_classes))
    no_labels = np.zeros(len(files), dtype=np.int64)
    source = FolderSource(
        root="",
        paths=files,
        labels=no_labels,
        classes=(),
        in_chans=transform.in_chans,
        description=f"{len(files)} images",
    )
    source.max_pixels = _most_pixels(meta.recipe or {}, checkpoint)
    try:
        loader = EvalLoader(source, transform, BATCH, target)
    except UserError:  # of a set without any readable image
        problems = [_problem(source, i) for i in range(len(files))]
        if None in problems:
            raise
        return [Prediction(path, problem=problem) for path, problem in zip(files, problems, strict=True)]
    predictions: dict[str, Prediction] = {}

    def look(_: int, logits: Tensor, batch: Batch) -> None:
        probabilities = torch.softmax(logits.float(), dim=1)
        if not bool(torch.isfinite(probabilities).all()):
            raise UserError(f"{shown(checkpoint)} answers with NaN; these weights cannot be used")
        best, order = (t.cpu() for t in probabilities.topk(min(top_k, len(names)), dim=1))
        for i, row, row_best in zip(batch.indices.tolist(), order.tolist(), best.tolist(), strict=True):
            predictions[files[i]] = Prediction(files[i], tuple(names[number] for number in row), tuple(row_best))

    classify_each([(model, None)], loader, look)
    predictions |= {path: Prediction(path, problem=why) for path, why in loader.skipped.items()}
    return [predictions[path] for path in files]


def _problem(source: FolderSource, i: int) -> str | None:
    """Why an image cannot be read; None where it can."""
    try:
        source.read(i)
    except BrokenImage as broken:
        return broken.why
    return None


def _most_pixels(recipe: Mapping[str, Any], checkpoint: Path | str) -> int:
    """The limit of the recipe that travels with the weights, which a recipe of an older version does not have."""
    data = recipe.get("data", {})
    limit = data.get("max_image_pixels", MAX_PIXELS) if isinstance(data, Mapping) else data
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit < 2**31:
        raise UserError(
            f"{shown(checkpoint)}: data.max_image_pixels of the recipe in it is {shown(limit, 60)}, expected a whole "
            "number from 1 to 2147483647; save the weights again"
        )
    return limit


def find_images(given: Sequence[Path | str]) -> tuple[list[str], PassedOver]:
    """Image files behind files, folders and patterns, each once, and what else lies in the folders.

    Folders are searched as training searches them.

    Raises:
        UserError: One of them has no image; a file that is named outright is taken whatever its ending.
    """
    files: dict[str, None] = {}
    passed_over = PassedOver()
    for item in given:
        path, text = Path(item), str(item)
        if not text:
            raise UserError("an image's name is empty; give files, folders or patterns such as 'photos/*.jpg'")
        if path.is_file():
            matches = [text]
        elif path.is_dir():
            inside = walk(path)
            matches = [str(path / name) for name in inside.pictures]
            passed_over.take(inside.passed_over)
        elif glob.has_magic(text) and not _ADDRESS.match(text):
            matches = files_matching(text)
        else:
            raise UserError(_why_not(text))
        if not matches:
            lost = passed_over.lost()
            why = f"; passed over: {lost}" if lost else ""
            raise UserError(
                f"{shown(text)} has no image in it; known endings: {', '.join(sorted(picture_endings()))}{why}"
            )
        files |= dict.fromkeys(matches)
    return list(files), passed_over


def _why_not(text: str) -> str:
    """What is wrong with something that is neither file nor folder nor pattern."""
    name = shown(text)
    if _ADDRESS.match(text):
        command = f"curl -O {shlex.quote(name)}"
        return f"{name} is an address, and nothing is downloaded; fetch it first ({command}) and give the file"
    if text == "-":
        return "images are not read from stdin; give files, folders or patterns such as 'photos/*.jpg'"
    return f"there is no image {name}; give files, folders or patterns such as 'photos/*.jpg'"
