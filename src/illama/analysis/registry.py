"""Which analyses there are, in the order of a report, what can be asked of each, and words such as landscape.points=11.

Loads no torch: the command line reads it for its help.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import TypeAdapter, ValidationError

from illama.errors import UserError
from illama.recipes.load import parse_overrides
from illama.registry import Registry, closest

if TYPE_CHECKING:
    from illama.analysis.report import AnalysisResult
    from illama.evaluation.saved_logits import SavedLogits
    from illama.evaluation.subject import Subject

Pooled = Literal["class", "mean"]


def _demand(fits: bool | int, allowed: str, given: float) -> None:
    if not fits:
        raise UserError(f"{allowed}; got {given:g}" if isinstance(given, float) else f"{allowed}; got {given}")


@dataclass(frozen=True, kw_only=True)
class ComparisonOptions:
    """Two networks on the same images.

    Attributes:
        bins: Equal-width bins of confidence over (0, 1].
        resamples: Bootstrap samples behind each interval.
        seed: Decides the bootstrap samples.
    """

    analysis: ClassVar[str] = "compare"

    bins: int = 15
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("bins", "resamples"):
            _demand(getattr(self, name) >= 1, f"{self.analysis}.{name} must be at least 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions(ComparisonOptions):
    """Confidence against accuracy (Table 8, Fig. 7).

    Attributes:
        bins: Equal-width bins of confidence over (0, 1].
        resamples: Bootstrap samples behind each interval.
        seed: Decides which images the temperature is fitted on, and the bootstrap samples.
        fit_share: Share of the images that temperature scaling is fitted on; it is tested on the others.
    """

    analysis: ClassVar[str] = "calibration"

    fit_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _demand(0 < self.fit_share < 1, "calibration.fit_share must lie between 0 and 1", self.fit_share)


@dataclass(frozen=True, kw_only=True)
class ClassesOptions:
    """Per-class accuracy and confusions.

    Attributes:
        shown: Classes and confusions in the tables; the CSV files have all.
        resamples: Bootstrap samples behind the interval of the balanced accuracy.
        seed: Decides the bootstrap samples.
    """

    shown: int = 10
    resamples: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shown", "resamples"):
            _demand(getattr(self, name) >= 1, f"classes.{name} must be at least 1", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Rank, distance and entropy of attention, and what the class token looks at (Fig. 4, 11).

    Attributes:
        images: Images chosen at random.
        seed: Decides which.
        share: Share of the singular values' sum that the rank has to reach.
        shown: Images whose class-token maps and rollout are drawn.
    """

    images: int = 30
    seed: int = 0
    share: float = 0.8
    shown: int = 4

    def __post_init__(self) -> None:
        _demand(self.images >= 1, "attention.images must be at least 1", self.images)
        _demand(self.shown >= 0, "attention.shown must be at least 0 (0 draws no maps)", self.shown)
        _demand(0 < self.share <= 1, "attention.share must lie above 0 and be at most 1", self.share)


@dataclass(frozen=True, kw_only=True)
class CausalityOptions:
    """What an exchange of later patches does to earlier tokens.

    Attributes:
        images: Images chosen at random, at least two.
        cuts: Places in the sequence after which all patches are exchanged, evenly spaced.
        seed: Decides which images.
    """

    images: int = 8
    cuts: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        _demand(self.images >= 2, "causality.images must be at least 2, for patches are exchanged", self.images)
        _demand(self.cuts >= 1, "causality.cuts must be at least 1", self.cuts)


@dataclass(frozen=True, kw_only=True)
class LandscapeOptions:
    """Loss along two random, filter-normalised directions (Fig. 10).

    Attributes:
        images: Images chosen at random, over which the loss is the mean.
        points: Points per side of the grid; odd, so that its middle is the network itself.
        extent: The grid covers -extent to extent along both directions.
        seed: Decides the images and the directions.
    """

    images: int = 1000
    points: int = 21
    extent: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _demand(self.images >= 1, "landscape.images must be at least 1", self.images)
        _demand(
            self.points >= 3 and self.points % 2, "landscape.points must be odd and at least 3, such as 21", self.points
        )
        _demand(0 < self.extent < math.inf, "landscape.extent must be a number above 0", self.extent)


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Linear probe and nearest neighbours on frozen features.

    Attributes:
        block: Whose output is taken: 0 to L - 1, or negative from the end.
        tokens: The "class" token, or the "mean" of the patches.
        every_block: Whether the nearest neighbours of every other block are asked too.
        neighbors: Nearest neighbours that vote.
        temperature: Of the votes exp(cosine / temperature).
        train_images: At most so many images of the training split, chosen at random; 0 takes all.
        seed: Decides which, the share that the probe's regularisation is chosen on, and what is held out of data
            without a training split.
    """

    block: int = -1
    tokens: Pooled = "class"
    every_block: bool = False
    neighbors: int = 20
    temperature: float = 0.07
    train_images: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        _demand(self.neighbors >= 1, "probe.neighbors must be at least 1", self.neighbors)
        _demand(0 < self.temperature < math.inf, "probe.temperature must be a number above 0", self.temperature)
        _demand(self.train_images >= 0, "probe.train_images must be at least 0 (0 takes all)", self.train_images)


@dataclass(frozen=True, kw_only=True)
class ShapeOptions:
    """Shape or texture, on pictures whose shape is of one category and whose texture of another (Table 8, Fig. 8).

    Attributes:
        cue_conflict: Folder with a folder of pictures for each shape category, named like cat10-elephant3.png.
    """

    cue_conflict: str | None = None


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions:
    """Accuracy on other images of ImageNet's classes; a set is left out where its folder is not given.

    Attributes:
        imagenet: Validation images of ImageNet-1K in folders by WordNet id; the data itself where it has such classes.
        imagenet_v2: One of ImageNet-V2's three sets, with folders 0 to 999.
        imagenet_a: ImageNet-A.
        imagenet_r: ImageNet-R.
        imagenet_sketch: ImageNet-Sketch.
        imagenet_c: ImageNet-C, CORRUPTION/SEVERITY/CLASS.
        real: ImageNet-ReaL's file real.json: other labels for the validation images.
    """

    imagenet: str | None = None
    imagenet_v2: str | None = None
    imagenet_a: str | None = None
    imagenet_r: str | None = None
    imagenet_sketch: str | None = None
    imagenet_c: str | None = None
    real: str | None = None


@dataclass(frozen=True)
class Analysis:
    """One analysis. The module of `illama.analysis` of its name has a function of its name, and `why_not`.

    Attributes:
        name: What it is called.
        help: One line for people.
        options: What can be asked of it; all fields have defaults.
        numbering: "model" where labels count by the network's classes; "data" where any images serve.
        of_logits: Whether the module has a NAME_of, which gives the same of saved logits without a network.
    """

    name: str
    help: str
    options: type[Any]
    numbering: Literal["model", "data"]
    of_logits: bool = False

    def run(self, subject: Subject, options: Any, workspace: Path | None) -> AnalysisResult:
        """Make it.

        Args:
            subject: Which network, on which images.
            options: What is asked of it.
            workspace: A folder where what a second call need not compute again is kept, made if absent; None keeps
                nothing.

        Raises:
            UserError: `why_not` has a reason, no image can be read, or logits, losses or tokens are not finite.
        """
        return self._function(self.name)(subject, options, workspace)

    def run_of(self, saved: SavedLogits, options: Any) -> AnalysisResult:
        """What it finds in saved logits, where `of_logits`."""
        return self._function(f"{self.name}_of")(saved, options)

    def why_not(self, subject: Subject, options: Any) -> str | None:
        """Why it cannot be made for this network and these images; None if it can."""
        if self.numbering == "model" and subject.numbering != "model":
            return "the images' classes are not the network's"
        return self._function("why_not")(subject, options)

    def _function(self, name: str) -> Any:
        return getattr(importlib.import_module(f"illama.analysis.{self.name}"), name)


_ROWS = (
    Analysis(
        "calibration",
        "Accuracy with intervals, calibration error, reliability, temperature (Table 8, Fig. 7).",
        CalibrationOptions,
        "model",
        of_logits=True,
    ),
    Analysis(
        "classes",
        "Accuracy of each class, confusions, the most confident mistakes.",
        ClassesOptions,
        "model",
        of_logits=True,
    ),
    Analysis("shape", "Shape or texture: decisions on cue-conflict pictures (Table 8, Fig. 8).", ShapeOptions, "data"),
    Analysis("robustness", "ImageNet-V2, -A, -R, -Sketch, -ReaL and -C.", RobustnessOptions, "data"),
    Analysis(
        "attention",
        "Rank, distance and entropy of attention, class-token maps, rollout (Fig. 4, 11).",
        AttentionOptions,
        "data",
    ),
    Analysis("causality", "Whether earlier tokens hear of later patches, and how loudly.", CausalityOptions, "data"),
    Analysis(
        "landscape",
        "Loss around the weights, along two filter-normalised directions (Fig. 10).",
        LandscapeOptions,
        "model",
    ),
    Analysis("probe", "Linear probe and nearest neighbours on frozen features.", ProbeOptions, "data"),
)
ANALYSES: Registry[Analysis] = Registry("analysis", {analysis.name: analysis for analysis in _ROWS})


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
    names = {field.name for field in dataclasses.fields(kind)}
    for option in values:
        if option not in names:
            raise UserError(f"{name} has no option {option!r}; {closest(option, names)}")
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, UserError):  # the options' own complaint, which says it all
            raise cause from None
        where = ".".join([name, *map(str, first["loc"])])
        raise UserError(f"{where}={first['input']}: {first['msg'].lower()}") from None
