"""The loss landscape as contours and as a surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from illama.report import Figure, svg_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize

LEVELS = 16
LOGARITHMIC_FROM = 20.0  # times the lowest loss is the highest: levels at equal ratios, else all lie in the steep part
COLORS = "viridis"


def landscape_figure(grid: np.ndarray, axis: list[float]) -> Figure:
    """Filled contours with the network's own place marked, and the same as a surface.

    Args:
        grid: Losses (points, points), row = second coordinate; NaN is drawn as a hole.
        axis: Coordinates along both sides.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.colors import Normalize as LinearNorm
    from matplotlib.figure import Figure as Canvas

    finite = grid[np.isfinite(grid)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    high = high if high > low else low + 1.0
    logarithmic = low > 0 and high / low > LOGARITHMIC_FROM
    norm = (LogNorm if logarithmic else LinearNorm)(low, high)
    canvas = Canvas(figsize=(10, 4.4), layout="constrained")
    _contours(canvas.add_subplot(1, 2, 1), grid, axis, norm, _levels(low, high, logarithmic))
    _surface(canvas.add_subplot(1, 2, 2, projection="3d"), grid, axis, norm, logarithmic)
    scale = " Colours and heights are spaced by equal ratios of the loss." if logarithmic else ""
    return Figure(
        "landscape",
        svg_bytes(canvas),
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
    found: list[str] = []
    for digits in range(3, 9):
        found = [f"{loss:.0f}" if abs(loss) >= 10**digits / 10 else f"{loss:.{digits}g}" for loss in losses]
        if len(set(found)) == len(found):
            break
    return found
