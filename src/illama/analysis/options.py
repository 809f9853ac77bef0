"""What can be asked of each analysis. Loads no torch: the command line shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Pooled = Literal["class", "mean"]


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Confidence against accuracy (Table 8, Fig. 7).

    Attributes:
        bins: Equal-width bins of confidence over (0, 1].
        fit_share: Share of the images that temperature scaling is fitted on; it is judged on the others.
        resamples: Bootstrap samples behind each interval.
        seed: Decides which images the temperature is fitted on, and the bootstrap samples.
    """

    bins: int = 15
    fit_share: float = 0.5
    resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ClassesOptions:
    """Per-class accuracy and confusions.

    Attributes:
        shown: Classes and confusions in the tables; the CSV files have all.
    """

    shown: int = 10


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


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Linear probe and nearest neighbours on frozen features.

    Attributes:
        block: Whose output is taken: 0 to L - 1, or negative from the end.
        tokens: The "class" token, or the "mean" of the patches.
        neighbors: Nearest neighbours that vote.
        temperature: Of the votes exp(cosine / temperature).
        train_images: At most so many images of the training split, chosen at random; 0 takes all.
        seed: Decides which, and the share that the probe's regularisation is chosen on.
    """

    block: int = -1
    tokens: Pooled = "class"
    neighbors: int = 20
    temperature: float = 0.07
    train_images: int = 0
    seed: int = 0
