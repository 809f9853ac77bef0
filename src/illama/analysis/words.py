"""Options of analyses from words such as landscape.points=11. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from illama.analysis.registry import ANALYSES
from illama.errors import UserError
from illama.recipes.load import parse_overrides
from illama.registry import closest


def read_options(words: Sequence[str]) -> dict[str, Any]:
    """Options of every analysis, changed by words `analysis.option=value`.

    Returns:
        Name -> options, for all of `ANALYSES`.

    Raises:
        UserError: A word is no option of an analysis, or its value is not of the option's kind.
    """
    tree, problems = parse_overrides(words)
    for text, _ in problems:
        raise UserError(f"{text!r} is no option of an analysis; write analysis.option=value, as landscape.points=11")
    options = {name: analysis.options() for name, analysis in ANALYSES.items()}
    for name, values in tree.items():
        if not isinstance(values, dict):
            raise UserError(f"{name}={values} lacks the option: write analysis.option=value, as landscape.points=11")
        options[name] = _changed(name, values)
    return options


def _changed(name: str, values: dict[str, Any]) -> Any:
    kind = ANALYSES[name].options
    known = {field.name for field in dataclasses.fields(kind)}
    for option in values:
        if option not in known:
            raise UserError(f"{name} has no option {option!r}; {closest(option, known)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # the options' own complaint, which says it all
            raise cause from None
        where = ".".join([name, *map(str, first["loc"])])
        raise UserError(f"{where}={first['input']}: {first['msg'].lower()}") from None
