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
from illama.analysis.landscape.measures import (
    MovableWeights,
    coordinates,
    fill_grid,
    filter_normalized_directions,
)
from illama.analysis.registry import LandscapeOptions
from illama.analysis.report import AnalysisResult, Measure, canvas
from illama.device.linear import keep_linear_kernels, linear_kernels
from illama.errors import UserError
from illama.evaluation import Scores, evaluating
from illama.evaluation.cache import Journal
from illama.evaluation.origin import data_id, network_id, short_name
from illama.evaluation.saved_logits import class_mismatch
from illama.report import Figure, Section, Table, Text, csv_text, svg_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from torch import Tensor

    from illama.evaluation.subject import Sample, Subject
    from illama.models import ILlama

RADII = (0.25, 0.5, 1.0)
ANGLES = 360  # of a circle that a mean is taken on
STEPS = 100  # of the radius, from the middle to the edge
LEVELS = 16
LOGARITHMIC_FROM = 20.0  # times the lowest loss is the highest: levels at equal ratios, else all lie in the steep part
COLORS = "viridis"


def why_not(subject: Subject, options: LandscapeOptions) -> str | None:
    """Why there is no loss of this network on these images; None if there is."""
    config = subject.model.config
    if not config.num_classes or not config.global_pool:
        return "the network gives no class scores, so it has no loss"
    return class_mismatch(subject)


def landscape(subject: Subject, options: LandscapeOptions, workspace: Path | None = None) -> AnalysisResult:
    """Mean cross-entropy of fixed images on a grid of weights around the network's own.

    The network's weights are moved and come back bit for bit, also after an error. The workspace keeps every point as
    soon as it is known, in a file of its own for each network, image set, kind of device and set of options; a later
    call computes only what is missing.
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
            value = mean_loss(model, sample, size)
        if not (a or b or math.isfinite(value)):
            raise UserError("the loss at the weights is not finite; use weights from before the training diverged")
        return value

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
    begun = Journal.begun(file)
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
    mean = float(RegularGridInterpolator((axis, axis), grid)(places).mean())
    return mean if math.isfinite(mean) else None


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
    loss, error = f"{_number(values['loss'])} nats", values["loss_standard_error"]
    if error is not None:
        sign = "\N{PLUS-MINUS SIGN}"
        loss = f"{_number(values['loss'])} {sign} {_number(error)} nats (mean {sign} standard error)"
    measures = [Measure(f"loss at the weights ({values['images']:,} images)", loss)]
    if circles := values["circles"]:
        name = f"mean loss at radius {', '.join(circles)} (1: every filter is moved by its own norm)"
        measures.append(Measure(name, f"{', '.join(map(_number, circles.values()))} nats"))
    return tuple(measures)


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


def landscape_figure(grid: np.ndarray, axis: list[float]) -> Figure:
    """Filled contours with the network's own place marked, and the same as a surface.

    Args:
        grid: Losses (points, points), row = second coordinate; NaN is drawn as a hole.
        axis: Coordinates along both sides.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.colors import Normalize as LinearNorm

    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    logarithmic = low > 0 and high / low > LOGARITHMIC_FROM
    norm = (LogNorm if logarithmic else LinearNorm)(low, high)
    figure = canvas(10, 4.4)
    _contours(figure.add_subplot(1, 2, 1), grid, axis, norm, _levels(low, high, logarithmic))
    _surface(figure.add_subplot(1, 2, 2, projection="3d"), grid, axis, norm, logarithmic)
    scale = " Colours and heights are spaced by equal ratios of the loss." if logarithmic else ""
    return Figure(
        "landscape",
        svg_bytes(figure),
        "Contours and surface of the loss over two random directions in the space of the weights",
        "The cross is the network itself, and the wider the dark valley around it, the further its weights can move "
        f"before the loss rises; 1 on an axis moves every filter by its own norm.{scale}",
    )


def _levels(low: float, high: float, logarithmic: bool) -> np.ndarray:
    return np.geomspace(low, high, LEVELS) if logarithmic else np.linspace(low, high, LEVELS)


def _contours(axes: Axes, grid: np.ndarray, axis: list[float], norm: Normalize, levels: np.ndarray) -> None:
    losses = np.ma.masked_invalid(grid)
    levels = np.concatenate((levels[:1] - abs(levels[0]) * 1e-6 - 1e-12, levels[1:-1], levels[-1:] * (1 + 1e-6)))
    filled = axes.contourf(axis, axis, losses, levels=levels, norm=norm, cmap=COLORS)
    axes.contour(axis, axis, losses, levels=levels[1:-1], colors="white", linewidths=0.5, alpha=0.6)
    for color, width in (("black", 4), ("white", 2)):  # seen on every colour
        axes.plot(0, 0, marker="x", color=color, markersize=9, markeredgewidth=width)
    axes.set_aspect("equal")
    _name_directions(axes, axis)
    ticks = levels[:: (LEVELS - 1) // 5]
    bar = axes.figure.colorbar(filled, ax=axes, shrink=0.85, ticks=ticks)
    bar.ax.set_yticklabels(_short(ticks))
    bar.ax.minorticks_off()
    bar.set_label("loss, nats")


def _surface(axes: Any, grid: np.ndarray, axis: list[float], norm: Normalize, logarithmic: bool) -> None:
    import matplotlib

    a, b = np.meshgrid(axis, axis)
    heights = np.log10(grid) if logarithmic else grid
    # A patch takes the mean of its corners' losses; one with a hole at a corner is left out.
    patches = (grid[:-1, :-1] + grid[1:, :-1] + grid[:-1, 1:] + grid[1:, 1:]) / 4
    colors = matplotlib.colormaps[COLORS](norm(np.ma.masked_invalid(patches)))
    surface = axes.plot_surface(a, b, heights, facecolors=colors, rstride=1, cstride=1, linewidth=0, shade=False)
    surface.set_rasterized(True)
    _name_directions(axes, axis)
    axes.set_title("height: loss, nats", fontsize=10)
    axes.view_init(elev=32, azim=-60)
    if logarithmic:
        ticks = _levels(float(np.nanmin(grid)), float(np.nanmax(grid)), True)[:: (LEVELS - 1) // 5]
        axes.set_zticks(np.log10(ticks), _short(ticks))


def _name_directions(axes: Any, axis: list[float]) -> None:
    ticks = [share * axis[-1] for share in (-1, -0.5, 0, 0.5, 1)]
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)
    axes.set_xlabel("first direction")
    axes.set_ylabel("second direction")


def _short(losses: np.ndarray) -> list[str]:
    """Losses with as few digits as tell them apart, three at least."""
    texts: list[str] = []
    for digits in range(3, 9):
        texts = [f"{loss:.0f}" if abs(loss) >= 10**digits / 10 else f"{loss:.{digits}g}" for loss in losses]
        if len(set(texts)) == len(texts):
            break
    return texts
