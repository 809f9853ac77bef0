"""The loss around a network's weights, on a plane of two random, filter-normalised directions (Fig. 10)."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from illama import native
from illama.analysis.capture import batch_size
from illama.analysis.landscape.figures import landscape_figure
from illama.analysis.landscape.measures import (
    MovableWeights,
    coordinates,
    description,
    fill_grid,
    filter_normalized_directions,
)
from illama.analysis.options import LandscapeOptions
from illama.analysis.result import AnalysisResult, Measure
from illama.device.linear import keep_linear_kernels, linear_kernels
from illama.errors import UserError
from illama.evaluation import Scores, evaluating
from illama.evaluation.origin import data_id, network_id, short_name
from illama.evaluation.saved_logits import class_mismatch
from illama.report import Section, Table, Text, csv_text

if TYPE_CHECKING:
    from torch import Tensor

    from illama.evaluation.subject import Sample, Subject
    from illama.models import ILlama

RADII = (0.25, 0.5, 1.0)
ANGLES = 360  # of a circle that a mean is taken on
STEPS = 100  # of the radius, from the middle to the edge


def why_not(subject: Subject, options: LandscapeOptions) -> str | None:
    """Why there is no loss of this network on these images; None if there is."""
    config = subject.model.config
    if not config.num_classes or not config.global_pool:
        return "the network gives no class scores, so it has no loss"
    return class_mismatch(subject)


def landscape(subject: Subject, options: LandscapeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Mean cross-entropy of fixed images on a grid of weights around the network's own.

    Args:
        subject: Which network, on which images. Its weights are moved and come back bit for bit, also after an error.
        options: Grid, images and directions.
        workspace: Where every point is kept as soon as it is known, in a file of its own for each network, image set,
            kind of device and set of options; a later call computes only what is missing. None keeps nothing.

    Raises:
        UserError: `why_not`, no readable image, no finite loss at the weights, or a file of the workspace that cannot
            be used.
    """
    problem = why_not(subject, options)
    if problem is not None:
        raise UserError(problem)
    sample = subject.sample(options.images, options.seed)
    size = min(subject.batch_size, batch_size(subject.model, keeps_graph=False))
    identity = _identity(subject, options, sample.positions, size)
    file = None if workspace is None else workspace / f"landscape-{short_name(identity)}.jsonl"
    axis = coordinates(options.extent, options.points)
    computed_as = _with_kernel(identity, file, subject.model)
    grid = fill_grid(axis, _loss_at(subject.model, sample, size, options.seed), file, computed_as)
    values = _values(grid, axis, options, len(sample.labels))
    values["loss_standard_error"] = _standard_error(subject.model, sample, size, file, identity)
    section = Section("Loss landscape", (Text(_how(values)), landscape_figure(grid, axis), _table(values)))
    places = [(a, b, grid[i, j]) for i, b in enumerate(axis) for j, a in enumerate(axis)]
    rows = [(a, b, None if math.isnan(loss) else float(loss)) for a, b, loss in places]
    table = {"landscape.csv": csv_text(("a", "b", "loss"), rows)}
    return AnalysisResult("landscape", _summary(values), section, values, table)


def image_losses(model: ILlama, sample: Sample, size: int) -> Scores:
    """Cross-entropy in nats of each of some images in batches of `size`, as `evaluate_model` computes it."""
    labels = sample.labels.to(sample.images.device)
    with evaluating(model, None):
        batches = zip(sample.images.split(size), labels.split(size), sample.positions.split(size), strict=True)
        parts = [Scores.of(model(images), targets, positions) for images, targets, positions in batches]
    return Scores.join(parts)


def mean_loss(model: ILlama, sample: Sample, size: int) -> float:
    """Mean of `image_losses`."""
    return image_losses(model, sample, size).mean_loss()


def _standard_error(
    model: ILlama, sample: Sample, size: int, file: Path | None, identity: dict[str, Any]
) -> float | None:
    """Of the loss at the weights over the images, in nats; kept beside the grid. None of a single image."""
    if len(sample.labels) < 2:
        return None

    def of_images(*_: float) -> float:
        losses = image_losses(model, sample, size).losses.double()
        return float(losses.std()) / math.sqrt(len(losses))

    beside = None if file is None else file.with_name(f"{file.stem}-error{file.suffix}")
    return float(fill_grid([0.0], of_images, beside, identity)[0, 0])


def _loss_at(model: ILlama, sample: Sample, size: int, seed: int) -> Callable[[float, float], float]:
    weights = MovableWeights(model, *filter_normalized_directions(dict(model.named_parameters()), seed))

    def loss(a: float, b: float) -> float:
        with weights.moved(a, b):
            found = mean_loss(model, sample, size)
        if not (a or b or math.isfinite(found)):
            raise UserError("the loss at the weights is not finite; use weights from before the training diverged")
        return found

    return loss


def _identity(subject: Subject, options: LandscapeOptions, positions: Tensor, size: int) -> dict[str, Any]:
    """All that a point depends on, as plain values."""
    return {
        "network": network_id(subject.model, subject.transform),
        "data": data_id(subject.source),
        "positions": hashlib.sha256(positions.numpy().tobytes()).hexdigest(),
        "options": dataclasses.asdict(options),
        "device": subject.device.type,
        "batch_size": size,
    }


def _with_kernel(identity: dict[str, Any], file: Path | None, model: ILlama) -> dict[str, Any]:
    """The identity, and which library multiplies: another one rounds differently, so a file goes on with its own."""
    begun = None if file is None else description(file)
    if begun is not None and "linear_kernel" in begun:
        keep_linear_kernels(begun["linear_kernel"])
        native.keep(bool(begun.get("native")))  # earlier versions had none
        return identity | {key: begun[key] for key in ("linear_kernel", "native") if key in begun}
    return identity | {"linear_kernel": linear_kernels(model), "native": native.kernels() is not None}


def circle_mean(grid: np.ndarray, axis: list[float], radius: float) -> float | None:
    """Mean over a circle around the middle, linear between the points; None beyond the edge or next to a hole."""
    from scipy.interpolate import RegularGridInterpolator

    if radius > axis[-1]:
        return None
    angles = 2 * math.pi * np.arange(ANGLES) / ANGLES
    places = np.clip(radius * np.stack((np.sin(angles), np.cos(angles)), axis=1), axis[0], axis[-1])
    found = float(RegularGridInterpolator((axis, axis), grid)(places).mean())
    return found if math.isfinite(found) else None


def radius_below(grid: np.ndarray, axis: list[float], limit: float) -> float | None:
    """Largest radius up to which the mean over every circle stays below a limit, in steps of a hundredth of the extent.

    None where not even the middle is below it; the extent where all circles are.
    """
    middle, extent = float(grid[len(axis) // 2, len(axis) // 2]), axis[-1]
    if not middle < limit:
        return None
    reached = 0.0
    for step in range(1, STEPS + 1):
        radius = extent * step / STEPS
        mean = circle_mean(grid, axis, radius)
        if mean is None or mean >= limit:
            break
        reached = radius
    return reached


def _values(grid: np.ndarray, axis: list[float], options: LandscapeOptions, images: int) -> dict[str, Any]:
    centre = float(grid[len(axis) // 2, len(axis) // 2])
    finite = grid[np.isfinite(grid)]
    return {
        "images": images,
        "points": options.points,
        "extent": options.extent,
        "seed": options.seed,
        "loss": centre if math.isfinite(centre) else None,
        "lowest": float(finite.min()) if len(finite) else None,
        "highest": float(finite.max()) if len(finite) else None,
        "not_finite": int(grid.size - len(finite)),
        "circles": {f"{radius:g}": circle_mean(grid, axis, radius) for radius in RADII if radius <= options.extent},
        "radius_of_twice_the_loss": radius_below(grid, axis, 2 * centre),
        "axis": axis,
        "grid": [[float(loss) if math.isfinite(loss) else None for loss in row] for row in grid],
    }


def _how(values: dict[str, Any]) -> str:
    holes = values["not_finite"]
    missing = f" {holes} of {values['points'] ** 2} points have no finite loss and are left white." if holes else ""
    return (
        f"Mean cross-entropy of {values['images']:,} images chosen at random (seed {values['seed']}), at weights moved "
        "along two random directions. In each direction every filter (a row of a linear layer, an output channel of "
        "the patch convolution, the vector of a token in the position embedding, the class token) has the norm of the "
        "network's own, so radius 1 moves every filter by its own norm; biases and norms stay (Li et al. 2018). "
        f"Compare only networks seen with the same images, extent and seed: this is one plane of very many.{missing}"
    )


def _summary(values: dict[str, Any]) -> tuple[Measure, ...]:
    measures = [Measure(f"loss at the weights ({values['images']:,} images)", _at_the_weights(values))]
    if circles := values["circles"]:
        name = f"mean loss at radius {', '.join(circles)} (1: every filter is moved by its own norm)"
        measures.append(Measure(name, f"{', '.join(map(_number, circles.values()))} nats"))
    return tuple(measures)


def _at_the_weights(values: dict[str, Any]) -> str:
    error = values["loss_standard_error"]
    if error is None:
        return f"{_number(values['loss'])} nats"
    return (
        f"{_number(values['loss'])} \N{PLUS-MINUS SIGN} {_number(error)} nats (mean \N{PLUS-MINUS SIGN} standard error)"
    )


def _table(values: dict[str, Any]) -> Table:
    reached = values["radius_of_twice_the_loss"]
    whole = reached is not None and reached >= values["extent"]
    shown = "none" if reached is None else f"{reached:.2f}" + (" (the edge)" if whole else "")
    twice = None if values["loss"] is None else 2 * values["loss"]
    rows = [("loss at the weights", _number(values["loss"]), "0")]
    rows += [("mean loss on a circle", _number(loss), radius) for radius, loss in values["circles"].items()]
    rows += [
        ("twice the loss at the weights: the mean on circles stays below it up to", _number(twice), shown),
        ("lowest loss on the grid", _number(values["lowest"]), ""),
        ("highest loss on the grid", _number(values["highest"]), ""),
    ]
    return Table(("along the two directions", "loss, nats", "radius"), tuple(rows))


def _number(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}" if loss < 100 else f"{loss:.4g}"
