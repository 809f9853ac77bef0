"""What the pictures of all analyses share: a canvas, layers along an axis, names of classes beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from illama.console import text
from illama.data.imagenet import readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LONGEST_NAME = 28  # characters beside an axis; what follows is cut off
GRID = "#dddddd"


def canvas(width: float, height: float, layout: Any = "constrained") -> Figure:
    """An empty picture of so many inches, without a window."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout=layout)


def open_frame(axes: Axes) -> Axes:
    """The same without the lines above and at the right."""
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def layers_along(axes: Axes, layers: int) -> range:
    """Layers 1 to `layers` along the lower axis, with about twelve numbers; returns them."""
    numbers = range(1, layers + 1)
    axes.set_xticks(list(numbers)[:: max(1, layers // 12)])
    axes.set(xlabel="layer", xlim=(0.5, layers + 0.5))
    return numbers


def shown(name: str) -> str:
    """A name of a class on one line; a WordNet id of ImageNet with its word."""
    return text.shown(" ".join(readable(name).split()))


def short(name: str) -> str:
    """The same, where there is room for `LONGEST_NAME` characters."""
    name = shown(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
