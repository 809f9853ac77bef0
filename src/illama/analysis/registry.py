"""Which analyses there are, in the order of a report, and their options from words such as landscape.points=11.

Loads no torch: the command line reads it for its help.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from illama.analysis.options import (
    AttentionOptions,
    CalibrationOptions,
    CausalityOptions,
    ClassesOptions,
    LandscapeOptions,
    ProbeOptions,
    RobustnessOptions,
    ShapeOptions,
)
from illama.errors import UserError
from illama.recipes.load import parse_overrides
from illama.registry import Registry, closest


@dataclass(frozen=True)
class Analysis:
    """One analysis. Its module has a function of its name, and `why_not`.

    Attributes:
        help: One line for people.
        module: Module of `illama.analysis`.
        options: What can be asked of it; all fields have defaults.
        numbering: "model" where labels count by the network's classes; "data" where any images serve.
        of_logits: Whether NAME_of(saved logits, options) gives the same without a network.
    """

    help: str
    module: str
    options: type[Any]
    numbering: Literal["model", "data"]
    of_logits: bool = False

    def load(self, function: str) -> Callable[..., Any]:
        """A function of the analysis's module."""
        found: Callable[..., Any] = getattr(importlib.import_module(f"illama.analysis.{self.module}"), function)
        return found


ANALYSES: Registry[Analysis] = Registry(
    "analysis",
    {
        "calibration": Analysis(
            "Accuracy with intervals, calibration error, reliability, temperature (Table 8, Fig. 7).",
            "calibration",
            CalibrationOptions,
            "model",
            of_logits=True,
        ),
        "classes": Analysis(
            "Accuracy of each class, confusions, the most confident mistakes.",
            "classes",
            ClassesOptions,
            "model",
            of_logits=True,
        ),
        "shape": Analysis(
            "Shape or texture: decisions on cue-conflict pictures (Table 8, Fig. 8).",
            "shape",
            ShapeOptions,
            "data",
        ),
        "robustness": Analysis("ImageNet-V2, -A, -R, -Sketch, -ReaL and -C.", "robustness", RobustnessOptions, "data"),
        "attention": Analysis(
            "Rank, distance and entropy of attention, class-token maps, rollout (Fig. 4, 11).",
            "attention",
            AttentionOptions,
            "data",
        ),
        "causality": Analysis(
            "Whether earlier tokens hear of later patches, and how loudly.", "causality", CausalityOptions, "data"
        ),
        "landscape": Analysis(
            "Loss around the weights, along two filter-normalised directions (Fig. 10).",
            "landscape",
            LandscapeOptions,
            "model",
        ),
        "probe": Analysis("Linear probe and nearest neighbours on frozen features.", "probe", ProbeOptions, "data"),
    },
)


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
