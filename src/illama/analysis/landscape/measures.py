"""Random directions in the space of the weights, and values on a grid along two of them.

A filter is what makes one output: a row of a linear layer (of the packed q, k, v projection: one channel of one head's
query, key or value), one output channel of the patch convolution with all its inputs, and one token's vector of the
position embedding and the class token. Parameters with one axis (biases, norms, LayerScale) do not move.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from illama.console.json_text import parse_json
from illama.console.progress import WorkProgress
from illama.errors import UserError
from illama.evaluation.cache import make_workspace
from illama.system.files import open_regular, own_file, write_file

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


Point = tuple[int, int]  # row (second coordinate) and column (first coordinate)


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
    known = {} if file is None else _read(file, about)
    for (row, column), found in known.items():
        grid[row, column] = found
    wanted = [(row, column) for row in range(len(axis)) for column in range(len(axis)) if (row, column) not in known]
    middle = len(axis) // 2, len(axis) // 2
    wanted.sort(key=lambda point: point != middle)
    with WorkProgress("loss landscape", len(wanted), "points") as progress:
        for row, column in wanted:
            found = value(axis[column], axis[row])
            grid[row, column] = found if math.isfinite(found) else math.nan
            if file is not None:
                _append(file, {"row": row, "column": column, "value": found if math.isfinite(found) else None})
            progress.advance(1)
    return grid


def description(file: Path) -> dict[str, Any] | None:
    """What a file of `fill_grid` is about; None where there is none yet, or nothing that can be read."""
    try:
        with open(file, encoding="utf-8", opener=open_regular) as lines:
            found = parse_json(lines.readline())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _read(file: Path, about: Mapping[str, Any]) -> dict[Point, float]:
    """Points that are known. A new file is begun; a last line that was cut short by a crash is taken away."""
    if not os.path.lexists(file):
        make_workspace(file.parent)
        _append(file, about)
        return {}
    try:
        with open(file, "rb", opener=open_regular) as opened:
            content = opened.read()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; delete it to compute the grid anew") from None
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        write_file(file, whole)
    lines = whole.decode(errors="replace").splitlines()
    if not lines:
        _append(file, about)
        return {}
    try:
        first, *rest = map(parse_json, lines)
        points = {(int(each["row"]), int(each["column"])): each["value"] for each in rest}
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{file} is damaged; delete it to compute the grid anew") from None
    if first != json.loads(json.dumps(about)):
        raise UserError(f"{file} belongs to another network, other images or options; give another folder")
    return {point: math.nan if value is None else float(value) for point, value in points.items()}


def _append(file: Path, line: Mapping[str, Any]) -> None:
    try:
        with open(file, "a", encoding="utf-8", opener=own_file) as open_file:
            open_file.write(json.dumps(line, allow_nan=False) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from None
