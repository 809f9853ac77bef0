"""Which analyses there are, in the order of a report. Loads no torch: the command line shows them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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
from illama.registry import Registry


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
