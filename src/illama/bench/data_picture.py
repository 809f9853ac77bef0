"""The same images through illama's and timm's training transform, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from illama.data.augment.per_image import timm_options, train_transform
from illama.data.decode.images import BrokenImage
from illama.data.rng import Purpose, global_seed
from illama.data.source import Source
from illama.errors import UserError
from illama.optional import import_timm
from illama.recipes import Recipe

IMAGES, DRAWS = 8, 3


def draw_samples(source: Source, recipe: Recipe, file: Path) -> None:
    """Save a grid: each row one image, drawn three times by either side; before erasing and mixing.

    Raises:
        UserError: The file cannot be written.
    """
    import_timm()
    from timm.data import create_transform

    size = (recipe.model.in_chans, *recipe.model.height_width)
    ours = train_transform(recipe, "resized")
    theirs = create_transform(size, is_training=True, normalize=False, **timm_options(recipe))
    figure = Figure(figsize=(1.55 * (2 * DRAWS + 1) + 0.3, 1.55 * IMAGES + 0.9), layout="constrained")
    columns = figure.add_gridspec(1, 3, width_ratios=(1, DRAWS, DRAWS))
    left, middle, right = (figure.add_subfigure(columns[0, place]) for place in range(3))
    middle.suptitle("illama")
    right.suptitle("timm create_transform")
    left.suptitle("image")
    rows = [middle.subplots(IMAGES, DRAWS), right.subplots(IMAGES, DRAWS)]
    whole = left.subplots(IMAGES, 1)
    for axes in (*rows[0].flat, *rows[1].flat, *whole.flat):
        axes.set_axis_off()
    for row, i in enumerate(_readable(source)):
        image = source.read(i)
        whole[row].imshow(np.asarray(image), cmap="gray")
        for draw in range(DRAWS):
            for side, axes in enumerate(rows):
                with global_seed(Purpose.SAMPLE, recipe.seed, draw, i):
                    pixels: torch.Tensor = theirs(image) if side else ours(source.picture(i))
                axes[row, draw].imshow(pixels.permute(1, 2, 0).numpy(), cmap="gray")
    policy = recipe.augment.randaugment or f"color_jitter {recipe.augment.color_jitter:g}"
    figure.suptitle(f"{recipe.name}: crop, flip, {policy}; random numbers differ", fontsize=10)
    try:
        figure.savefig(file, dpi=80)
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _readable(source: Source) -> list[int]:
    """Images spread over the source that can be read."""
    found: list[int] = []
    for i in np.unique(np.linspace(0, len(source) - 1, 3 * IMAGES).astype(int)).tolist():
        try:
            source.read(i)
        except BrokenImage:
            continue
        found.append(i)
    return found[:: max(1, len(found) // IMAGES)][:IMAGES]
