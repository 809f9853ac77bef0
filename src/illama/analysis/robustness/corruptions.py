"""ImageNet-C: 15 corruptions and 4 further ones at five severities, and the mean corruption error.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR 2019).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from illama.data.sources.walk import is_hidden
from illama.errors import UserError
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
    found: dict[tuple[str, int], Path] = {}
    for folder in sorted(named, key=lambda folder: list(CORRUPTIONS).index(folder.name)):
        for severity in _folders(folder):
            if severity.name not in map(str, SEVERITIES):
                raise UserError(f"folder {severity} is no severity of ImageNet-C; they are called 1 to 5")
            if (folder.name, int(severity.name)) in found:
                raise UserError(f"{path} has the corruption {folder.name} twice; remove one of them")
            found[folder.name, int(severity.name)] = severity
    if not found:
        raise UserError(f"{path} has no image of ImageNet-C; they lie in folders such as gaussian_noise/1/n01440764")
    return found


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
    known = [value for value in relative if value is not None]
    return sum(known) / len(known) if len(known) == len(COUNTED) else None
