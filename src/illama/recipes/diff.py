"""What differs between two recipes: the reason why a run is not continued."""

from __future__ import annotations

from typing import Any, NamedTuple

from illama.recipes.rules import flatten
from illama.recipes.schema import Recipe


class Change(NamedTuple):
    """A key whose value differs."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def recipe_diff(old: Recipe, new: Recipe) -> list[Change]:
    """All keys in which `new` differs from `old`, in the order of the schema."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    return [Change(key, before[key], after[key]) for key in after if before[key] != after[key]]
