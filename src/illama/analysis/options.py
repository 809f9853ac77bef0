"""What can be asked of each analysis. Loads no torch: the command line shows it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from illama.errors import UserError

Pooled = Literal["class", "mean"]


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
            if getattr(self, name) < 1:
                raise UserError(f"{self.analysis}.{name} must be at least 1; got {getattr(self, name)}")


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
        if not 0 < self.fit_share < 1:
            raise UserError(f"calibration.fit_share must lie between 0 and 1; got {self.fit_share:g}")


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
            if getattr(self, name) < 1:
                raise UserError(f"classes.{name} must be at least 1; got {getattr(self, name)}")


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
        if self.images < 1:
            raise UserError(f"attention.images must be at least 1; got {self.images}")
        if self.shown < 0:
            raise UserError(f"attention.shown must be at least 0 (0 draws no maps); got {self.shown}")
        if not 0 < self.share <= 1:
            raise UserError(f"attention.share must lie above 0 and be at most 1; got {self.share}")


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
        if self.images < 2:
            raise UserError(f"causality.images must be at least 2, for patches are exchanged; got {self.images}")
        if self.cuts < 1:
            raise UserError(f"causality.cuts must be at least 1; got {self.cuts}")


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
        if self.images < 1:
            raise UserError(f"landscape.images must be at least 1; got {self.images}")
        if self.points < 3 or self.points % 2 == 0:
            raise UserError(f"landscape.points must be odd and at least 3, such as 21; got {self.points}")
        if not 0 < self.extent < math.inf:
            raise UserError(f"landscape.extent must be a number above 0; got {self.extent}")


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
        if self.neighbors < 1:
            raise UserError(f"probe.neighbors must be at least 1; got {self.neighbors}")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"probe.temperature must be a number above 0; got {self.temperature}")
        if self.train_images < 0:
            raise UserError(f"probe.train_images must be at least 0 (0 takes all); got {self.train_images}")


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
