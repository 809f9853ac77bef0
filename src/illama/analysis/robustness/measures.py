"""Other images of ImageNet's classes: which sets there are, how their folders are read; ImageNet-C and its errors.

Letters: N images, C = 1000 classes of ImageNet-1K. ImageNet-C: Hendrycks and Dietterich, "Benchmarking Neural Network
Robustness to Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from illama.console.text import read_json
from illama.data.imagenet import NUM_CLASSES, Subset, subset, wnids
from illama.data.layout import open_source
from illama.data.source import Source, number_classes
from illama.data.sources.walk import is_hidden
from illama.errors import UserError
from illama.evaluation.scores import Scores
from illama.recipes import DataConfig
from illama.registry import Registry

SEVERITIES = (1, 2, 3, 4, 5)

Errors = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Corruption:
    """One way to spoil an image.

    Attributes:
        group: "noise", "blur", "weather", "digital", or "extra" for those that do not count.
        alexnet: AlexNet's top-1 error, mean over the severities, 0 to 1, as published; None for the extra ones.
    """

    group: str
    alexnet: float | None = None


CORRUPTIONS: Registry[Corruption] = Registry(
    "corruption",
    {
        "gaussian_noise": Corruption("noise", 0.886428),
        "shot_noise": Corruption("noise", 0.894468),
        "impulse_noise": Corruption("noise", 0.922640),
        "defocus_blur": Corruption("blur", 0.819880),
        "glass_blur": Corruption("blur", 0.826268),
        "motion_blur": Corruption("blur", 0.785948),
        "zoom_blur": Corruption("blur", 0.798360),
        "snow": Corruption("weather", 0.866816),
        "frost": Corruption("weather", 0.826572),
        "fog": Corruption("weather", 0.819324),
        "brightness": Corruption("weather", 0.564592),
        "contrast": Corruption("digital", 0.853204),
        "elastic_transform": Corruption("digital", 0.646056),
        "pixelate": Corruption("digital", 0.717840),
        "jpeg_compression": Corruption("digital", 0.606500),
        "speckle_noise": Corruption("extra"),
        "gaussian_blur": Corruption("extra"),
        "spatter": Corruption("extra"),
        "saturate": Corruption("extra"),
    },
)
GROUPS = tuple(dict.fromkeys(corruption.group for corruption in CORRUPTIONS.values()))
COUNTED = tuple(name for name, corruption in CORRUPTIONS.items() if corruption.alexnet is not None)


def find_corrupted(path: Path) -> dict[tuple[str, int], Path]:
    """Folders of class folders by corruption and severity, in the order of `CORRUPTIONS`.

    Args:
        path: Folder with CORRUPTION/SEVERITY/CLASS, or GROUP/CORRUPTION/SEVERITY/CLASS as the archives are grouped.

    Raises:
        UserError: It is no folder, has no corruption, or a folder that is no corruption or severity.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give ImageNet-C's, with CORRUPTION/SEVERITY/CLASS in it")
    named: list[Path] = []
    for folder in _folders(path):
        named += _folders(folder) if folder.name in GROUPS else [folder]
    unknown = next((folder for folder in named if folder.name not in CORRUPTIONS), None)
    if unknown is not None:
        raise UserError(f"folder {unknown} is none of ImageNet-C's corruptions: {', '.join(CORRUPTIONS)}")
    sets: dict[tuple[str, int], Path] = {}
    for folder in sorted(named, key=lambda folder: list(CORRUPTIONS).index(folder.name)):
        for severity in _folders(folder):
            if severity.name not in map(str, SEVERITIES):
                raise UserError(f"folder {severity} is no severity of ImageNet-C; they are called 1 to 5")
            if (folder.name, int(severity.name)) in sets:
                raise UserError(f"{path} has the corruption {folder.name} twice; remove one of them")
            sets[folder.name, int(severity.name)] = severity
    if not sets:
        raise UserError(f"{path} has no image of ImageNet-C; they lie in folders such as gaussian_noise/1/n01440764")
    return sets


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and is_hidden(entry.name) is None)


def corruption_error(name: str, errors: Mapping[int, float]) -> float | None:
    """One corruption's error relative to AlexNet's (CE), 1 is as bad.

    Args:
        name: The corruption.
        errors: Severity -> top-1 error, 0 to 1.

    Returns:
        The sum over the five severities divided by AlexNet's; None with fewer of them, or for an extra corruption.
    """
    alexnet = CORRUPTIONS[name].alexnet
    if alexnet is None or set(errors) != set(SEVERITIES):
        return None
    return sum(errors.values()) / (len(SEVERITIES) * alexnet)


def mean_corruption_error(errors: Errors) -> float | None:
    """Mean of the 15 corruptions' relative errors (mCE); None unless all are there at all severities."""
    relative = [corruption_error(name, errors.get(name, {})) for name in COUNTED]
    measured = [value for value in relative if value is not None]
    return sum(measured) / len(measured) if len(measured) == len(COUNTED) else None


VALIDATION_IMAGES = 50_000
_VALIDATION_NAME = re.compile(r"ILSVRC2012_val_(\d{8})")
NUMBERS = tuple(map(str, range(NUM_CLASSES)))


@dataclass(frozen=True)
class ImageSet:
    """One set of images in folders by class.

    Attributes:
        title: Its name.
        images: How many the whole set has; None where that is not known.
        about: What it holds, in a few words.
        only: The subset of the classes that it has; None for all. Then only these compete for the answer, as the
            set's authors do it.
    """

    title: str
    images: int | None
    about: str
    only: Subset | None = None

    @property
    def classes(self) -> tuple[int, ...]:
        """Numbers of the classes that it has, ascending."""
        return tuple(range(NUM_CLASSES)) if self.only is None else subset(self.only)


SETS: Registry[ImageSet] = Registry(
    "image set",
    {
        "imagenet": ImageSet("ImageNet", VALIDATION_IMAGES, "the validation images"),
        "imagenet_v2": ImageSet("ImageNet-V2", 10_000, "new images, collected like the first (Recht et al., 2019)"),
        "imagenet_a": ImageSet(
            "ImageNet-A", 7_500, "photographs that a ResNet-50 gets wrong (Hendrycks et al., 2021)", "imagenet-a"
        ),
        "imagenet_r": ImageSet(
            "ImageNet-R", 30_000, "paintings, toys, tattoos, ... (Hendrycks et al., 2021)", "imagenet-r"
        ),
        "imagenet_sketch": ImageSet("ImageNet-Sketch", 50_889, "black and white sketches (Wang et al., 2019)"),
    },
)


def open_set(which: ImageSet, path: Path, in_chans: int = 3) -> Source:
    """Open a set, its classes numbered as in ImageNet-1K; a part of its classes and images will do.

    Args:
        which: Decides which classes there may be.
        path: Folder of class folders, named by WordNet id, or by number as ImageNet-V2 comes; or of a split (val).
        in_chans: 1 or 3.

    Raises:
        UserError: No such folder, no image in it or a folder that is no class of the set.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give {which.title}'s folder of class folders (n01440764, ...)")
    source = as_imagenet(open_source(DataConfig(name="folder", path=str(path)), "auto", in_chans=in_chans), path)
    foreign = np.setdiff1d(source.labels, which.classes)
    if len(foreign):
        name = wnids()[foreign[0]]
        raise UserError(f"{path} has images of {name}, which is none of {which.title}'s {len(which.classes)} classes")
    return source


def as_imagenet(source: Source, where: Path | str) -> Source:
    """The same images, numbered by ImageNet-1K's classes.

    Raises:
        UserError: A class is called neither by a WordNet id of ImageNet-1K nor, all of them, by a number 0 to 999.
    """
    by_number = set(source.classes) <= set(NUMBERS)
    unknown = [] if by_number else sorted(set(source.classes) - set(wnids()))
    if unknown:
        raise UserError(
            f"{where} has a class {unknown[0]!r} ({len(unknown)} such), which is no WordNet id of ImageNet-1K's "
            "classes (n01440764, ...); give the folder that holds the class folders, and those that are named so"
        )
    numbered = copy.copy(source)
    _, numbered.labels = number_classes(source.classes, source.labels, NUMBERS if by_number else wnids(), str(where))
    numbered.classes = wnids()
    return numbered


def scores_among(logits: Tensor, targets: Tensor, classes: Sequence[int]) -> Scores:
    """Judge logits (N, C) by targets (N,) where only some classes compete; all targets must be among them."""
    kept = torch.tensor(classes)
    place = torch.full((logits.shape[1],), -1)
    place[kept] = torch.arange(len(kept))
    return Scores.of(logits[:, kept], place[targets])


@dataclass(frozen=True)
class RealScore:
    """Accuracy by labels of which an image may have several, or none (Beyer et al., 2020).

    Attributes:
        hits: Images whose prediction is one of their labels.
        images: Images with a label.
        unlabelled: Images without one; they do not count.
    """

    hits: int
    images: int
    unlabelled: int


def read_real(path: Path) -> list[list[int]]:
    """ImageNet-ReaL's labels of the 50,000 validation images, in the order of their numbers.

    Raises:
        UserError: The file is missing, or no list of as many lists of classes.
    """
    try:
        labels = read_json(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give ImageNet-ReaL's real.json") from None
    except ValueError:
        raise UserError(f"{path} is no JSON file; give ImageNet-ReaL's real.json") from None
    if not (isinstance(labels, list) and len(labels) == VALIDATION_IMAGES and all(map(_is_label_list, labels))):
        raise UserError(f"{path} is not ImageNet-ReaL's real.json: a list of {VALIDATION_IMAGES:,} lists of classes")
    return labels


def _is_label_list(own: object) -> bool:
    return isinstance(own, list) and all(type(label) is int and 0 <= label < NUM_CLASSES for label in own)


def validation_numbers(source: Source) -> Tensor:
    """Which of the 50,000 validation images each one is, from 1 on, (N,) int64, by the names of the files.

    Raises:
        UserError: A file has another name.
    """
    numbers = []
    for i in range(len(source)):
        match = _VALIDATION_NAME.match(Path(source.location(i)).name)
        if match is None or not 1 <= int(match[1]) <= VALIDATION_IMAGES:
            raise UserError(
                f"{source.location(i)} is not named like a validation image of ImageNet "
                "(ILSVRC2012_val_00000001.JPEG), so its ImageNet-ReaL labels are unknown; leave its real.json out"
            )
        numbers.append(int(match[1]))
    return torch.tensor(numbers)


def score_real(logits: Tensor, numbers: Tensor, labels: Sequence[Sequence[int]]) -> RealScore:
    """Judge logits (N, C) of the validation images `numbers` (N,), from 1 on, by ReaL `labels`.

    Raises:
        UserError: None of the images has a label.
    """
    own = [labels[number - 1] for number in numbers.tolist()]
    judged = [
        prediction in right for prediction, right in zip(logits.argmax(dim=1).tolist(), own, strict=True) if right
    ]
    if not judged:
        raise UserError(f"none of the {len(own)} validation images has a label in ImageNet-ReaL")
    return RealScore(hits=sum(judged), images=len(judged), unlabelled=len(own) - len(judged))
