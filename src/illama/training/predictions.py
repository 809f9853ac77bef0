"""predictions.png: some test images with what they show and what the model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from illama.data import BrokenImage, EvalTransform, Source
from illama.models import ILlama
from illama.training.figures import draw_predictions

SHOWN = 32


def draw_test_predictions(
    run_dir: Path | None, model: ILlama, source: Source, transform: EvalTransform, device: torch.device
) -> None:
    """Classify evenly spaced images of the evaluation split and draw them; unreadable ones are left out.

    Without a folder the model is asked and nothing is drawn: what the other processes of a sharded model have to do.
    """
    images, truths = [], []
    for index in np.linspace(0, len(source) - 1, min(SHOWN, len(source))).round().astype(int):
        try:
            images.append(transform(source.read(int(index))))
        except BrokenImage:
            continue
        truths.append(int(source.labels[index]))
    shown = torch.stack(images)
    model.eval()
    with torch.no_grad():
        probabilities = model(transform.normalize(shown, device)).float().softmax(-1).cpu()
    best, predicted = probabilities.max(-1)
    if run_dir is not None:
        path = run_dir / "predictions.png"
        draw_predictions(shown, truths, predicted.tolist(), best.tolist(), source.classes, path)
