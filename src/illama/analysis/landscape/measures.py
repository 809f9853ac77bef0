"""Random directions in the space of the weights, and values on a grid along two of them.

A filter is what makes one output: a row of a linear layer (of the packed q, k, v projection: one channel of one head's
query, key or value), one output channel of the patch convolution with all its inputs, and one token's vector of the
position embedding and the class token. Parameters with one axis (biases, norms, LayerScale) do not move.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from illama.console.progress import WorkProgress
from illama.evaluation.cache import Journal

TOKEN_VECTORS = ("pos_embed", "cls_token")  # (1, tokens, D): their first axis is none of outputs


def filter_rows(name: str, parameter: Tensor) -> Tensor:
    """The filters of a parameter of two or more axes as rows, (filters, values of each); a view where it can be."""
    return parameter.flatten(0, -2) if name in TOKEN_VECTORS else parameter.flatten(1)


def filter_normalized_directions(
    parameters: Mapping[str, Tensor], seed: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two normal random directions in which every filter has the norm of the weights' filter; 0 for one axis.

    Args:
        parameters: Name -> weights of any shape.
        seed: Decides both. Random numbers are drawn on the CPU in double precision, so they are the same for any device
            and dtype.

    Returns:
        Twice name -> tensor of the parameter's shape, dtype and device.
    """
    generator = torch.Generator().manual_seed(seed)
    first = {name: _scaled(name, parameter.detach(), generator) for name, parameter in parameters.items()}
    return first, {name: _scaled(name, parameter.detach(), generator) for name, parameter in parameters.items()}


def _scaled(name: str, weights: Tensor, generator: torch.Generator) -> Tensor:
    if weights.dim() < 2:
        return torch.zeros_like(weights)
    drawn = filter_rows(name, torch.randn(weights.shape, generator=generator, dtype=torch.float64))
    norms = filter_rows(name, weights.double().cpu()).norm(dim=1, keepdim=True)
    return (drawn * (norms / drawn.norm(dim=1, keepdim=True))).view(weights.shape).to(weights)


class MovableWeights:
    """The parameters of a network, which can be moved along two directions and come back bit for bit.

    Args:
        model: What is moved; by `moved` alone.
        first, second: Parameter name -> direction.
    """

    def __init__(self, model: nn.Module, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        self._parameters = dict(model.named_parameters())
        self._first, self._second = first, second
        self._home = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    @contextmanager
    def moved(self, a: float, b: float) -> Iterator[None]:
        """Within the context the weights are home + a * first + b * second; afterwards, whatever happened, home."""
        try:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    if a or b:  # 0 and 0 is the network itself, in every bit
                        parameter.copy_(self._home[name] + a * self._first[name] + b * self._second[name])
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self._parameters.items():
                    parameter.copy_(self._home[name])


def coordinates(extent: float, points: int) -> list[float]:
    """`points` coordinates from -extent to extent, symmetric in every bit; the middle one of an odd number is 0."""
    return [extent * (2 * i - (points - 1)) / (points - 1) for i in range(points)]


def fill_grid(
    axis: list[float], value: Callable[[float, float], float], file: Path | None, about: Mapping[str, Any]
) -> np.ndarray:
    """value(a, b) for all pairs of coordinates.

    Args:
        axis: Coordinates along both sides.
        value: Computes one point; the same whenever it is called. The middle comes first, then rows from the lowest.
        file: Where each point is kept as soon as it is known: JSON lines, `about` first. Points that are there are not
            computed again. None keeps nothing.
        about: All that the values depend on; plain values.

    Returns:
        (points, points) float64: row = b, column = a; NaN where the value is not finite.

    Raises:
        UserError: The file is about something else, or cannot be written.
    """
    grid = np.full((len(axis), len(axis)), math.nan)
    journal = None if file is None else Journal(file, about)
    done: set[tuple[int, int]] = set()  # row (second coordinate) and column (first coordinate)
    for entry in [] if journal is None else journal.entries:
        try:
            point, value_there = (int(entry["row"]), int(entry["column"])), entry["value"]
            grid[point] = math.nan if value_there is None else float(value_there)
        except (ValueError, TypeError, KeyError, IndexError):
            assert journal is not None
            raise journal.damaged() from None
        done.add(point)
    points = [(row, column) for row in range(len(axis)) for column in range(len(axis)) if (row, column) not in done]
    middle = len(axis) // 2, len(axis) // 2
    points.sort(key=lambda point: point != middle)
    with WorkProgress("loss landscape", len(points), "points") as progress:
        for row, column in points:
            computed = value(axis[column], axis[row])
            grid[row, column] = computed if math.isfinite(computed) else math.nan
            if journal is not None:
                journal.add({"row": row, "column": column, "value": computed if math.isfinite(computed) else None})
            progress.advance(1)
    return grid
