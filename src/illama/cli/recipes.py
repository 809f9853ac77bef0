"""`illama recipes`: what can be trained."""

from __future__ import annotations

from importlib.resources import files
from typing import Annotated

from cyclopts import Parameter


def recipes_command(*, keys: Annotated[bool, Parameter(negative="")] = False) -> None:
    """List the packaged recipes, one line each. `illama train NAME --print` shows one in full.

    Args:
        keys: All keys of a recipe instead, as Markdown: what each holds and decides.
    """
    from illama.recipes import list_recipes
    from illama.recipes.problems import keys_as_markdown

    if keys:
        print(keys_as_markdown(), end="")
        return

    names = list_recipes()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {headline(name)}")


def headline(name: str) -> str:
    """The first sentence of a recipe file's header."""
    text = files("illama.recipes").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    lines = [line.removeprefix("#").strip() for line in text.split("\n# Source:")[0].splitlines()]
    return " ".join(lines).split(". ")[0].rstrip(".") + "."
