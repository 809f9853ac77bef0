"""Names of classes in tables and pictures; CSV and JSON keep the names that the data has."""

from __future__ import annotations

from illama.console import text
from illama.data.imagenet import readable

LONGEST_NAME = 28  # characters beside an axis; what follows is cut off


def shown(name: str) -> str:
    """A name on one line; a WordNet id of ImageNet with its word."""
    return text.shown(" ".join(readable(name).split()))


def short(name: str) -> str:
    """The same, where there is room for `LONGEST_NAME` characters."""
    name = shown(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 3] + "..."
