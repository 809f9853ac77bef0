"""The logits of a network for a data set in one file, so that measures of them need neither again.

FILE.safetensors holds `logits` (N, C) float32, `targets` (N,) int64 and `indices` (N,) int64; its header describes them
in JSON. Letters: N images, C classes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from illama.console.text import shown
from illama.distributed import ALONE, World
from illama.errors import UserError
from illama.evaluation.cache import is_tensor_file, make_workspace, read_tensors, write_tensors
from illama.evaluation.calibration import Answers, refuse_non_finite
from illama.evaluation.classify import KeptLogits, collect_logits
from illama.evaluation.origin import data_id, network_id
from illama.evaluation.subject import Subject

ENDING = ".safetensors"
KEY = "illama_logits"  # of the safetensors header
FORMAT_VERSION = 1
CACHE_FILE = "logits.safetensors"


@dataclass(frozen=True, eq=False)
class SavedLogits:
    """What a network said of every readable image of a data set.

    Attributes:
        logits: (N, C) float32.
        targets: Right classes, (N,) int64.
        indices: Positions of the images in their source, (N,) int64, rising.
        classes: Class names in index order; () where they are unknown.
        data: What the images are, for people.
        data_id: `illama.evaluation.origin.data_id` of the source, unreadable images included.
        weights: Which weights, for people: the file and its optimizer step.
        network_id: SHA-256 of all that the logits depend on besides the images: weights, configuration, softness,
            image transform.
        softness: Softness of the mask during the pass.
        skipped: Images that could not be read: location -> reason.

    Raises:
        UserError: The parts do not fit each other.
    """

    logits: np.ndarray
    targets: np.ndarray
    indices: np.ndarray
    classes: tuple[str, ...] = ()
    data: str = ""
    data_id: str = ""
    weights: str = ""
    network_id: str = ""
    softness: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problem = self._misfit()
        if problem is not None:
            raise UserError(f"these are no logits with their targets: {problem}")

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def about(self) -> str:
        """Which weights, on which images, for people."""
        skipped = f", {len(self.skipped)} of them unreadable" if self.skipped else ""
        return f"{self.weights}, softness {self.softness:g}, on {self.data}{skipped}"

    @property
    def num_classes(self) -> int:
        """C."""
        return int(self.logits.shape[1])

    @property
    def class_names(self) -> tuple[str, ...]:
        """A name for each of the C classes: its number where no name is known."""
        return self.classes + tuple(str(number) for number in range(len(self.classes), self.num_classes))

    def answers(self) -> Answers:
        """What measures need to know of each image.

        Raises:
            UserError: A logit is not finite: of how many images, and the first one's position in the source.
        """
        refuse_non_finite(self.logits, self.indices)
        return Answers.of(self.logits, self.targets)

    def save(self, path: Path) -> None:
        """Write the file, which appears, or replaces the one of its name, once it is complete.

        Raises:
            UserError: It cannot be written.
        """
        tensors = {name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in _DTYPES}
        about = {name: getattr(self, name) for name in _ABOUT} | {"format_version": FORMAT_VERSION}
        write_tensors(path, KEY, tensors, about)

    @classmethod
    def load(cls, path: Path) -> SavedLogits:
        """Read a file that `save` wrote.

        Raises:
            UserError: There is none, it is damaged, or it is something else.
        """
        try:
            tensors, about = read_tensors(path, KEY, "logits")
        except UserError as error:
            raise UserError(f"{error} with illama eval CHECKPOINT --save-logits FILE.safetensors") from None
        parts: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        return cls(**parts, **_checked(about, path, parts))

    @staticmethod
    def is_one(path: Path) -> bool:
        """Whether a path is a file that says it holds logits, and not, say, weights."""
        return is_tensor_file(path, KEY)

    def _misfit(self) -> str | None:
        for name, dtype in _DTYPES.items():
            if getattr(self, name).dtype != dtype:
                return f"{name} are {getattr(self, name).dtype}, not {np.dtype(dtype)}"
        if self.logits.ndim != 2 or not self.logits.shape[1]:
            return f"the logits are {self.logits.shape}, not images x classes"
        if self.targets.shape != (len(self.logits),) or self.indices.shape != self.targets.shape:
            return f"{len(self.logits)} rows of logits, {len(self.targets)} targets, {len(self.indices)} positions"
        if not len(self.targets):
            return "there is no image"
        if not 0 <= self.targets.min() <= self.targets.max() < self.num_classes:
            bad = int(self.targets.min() if self.targets.min() < 0 else self.targets.max())
            return f"an image is of class {bad}, but the network has the classes 0 to {self.num_classes - 1}"
        if len(self.classes) > self.num_classes:
            return f"{len(self.classes)} class names for {self.num_classes} classes"
        return "the positions do not rise" if (np.diff(self.indices) <= 0).any() else None


_DTYPES: dict[str, type] = {"logits": np.float32, "targets": np.int64, "indices": np.int64}
_ABOUT = tuple(each.name for each in dataclasses.fields(SavedLogits) if each.name not in _DTYPES)


class _About(TypedDict):
    """The description in a file's header."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    classes: list[str]
    data: str
    data_id: str
    weights: str
    network_id: str
    softness: Annotated[float, Field(ge=0, le=1)]
    skipped: dict[str, str]


def _checked(about: dict[str, Any], path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The description in a file's header, as fields."""
    plain = dict(about)
    version = plain.pop("format_version", None)
    if version not in (None, FORMAT_VERSION):
        given = f"logits format {shown(version, 40)!r}" if isinstance(version, str) else f"logits format {version}"
        raise UserError(f"{path}: {shown(given, 60)}, this illama reads {FORMAT_VERSION}; update illama")
    try:
        fields: dict[str, Any] = dict(TypeAdapter(_About).validate_python(plain))
    except ValidationError:
        fields = {}
    if version is None or not fields or set(arrays) != set(_DTYPES):
        raise UserError(f"{path}: its header does not describe logits; save them again")
    return fields | {"classes": tuple(fields["classes"])}


def check_target(path: Path) -> None:
    """Refuse, before the work begins, a file that logits cannot be saved in.

    Raises:
        UserError: Another ending, a folder that does not exist, or no right to write there.
    """
    if path.suffix != ENDING:
        raise UserError(f"the file of logits {path} has to end in {ENDING}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} for the logits; make it or give another one")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"the logits {path} cannot be written; give another place")


def class_mismatch(subject: Subject) -> str | None:
    """Why the answers of this network cannot be compared with these labels, in one line; None if they can."""
    if subject.numbering != "model":
        return "the images are numbered by their own classes, not by those of the network"
    if not subject.model.config.num_classes:
        return "the network has no head, so it names no class; illama features and illama analyze probe take it"
    if not len(subject.source):
        return f"{subject.source.description}: there is no image"
    most, classes = int(subject.source.labels.max()), subject.model.config.num_classes
    if most >= classes:
        return f"{subject.source.description}: an image is of class {most}, but the network has {classes} classes"
    known = len(subject.source.classes)
    if not subject.meta.classes and known != classes:
        return f"{subject.source.description}: it has {known} classes, the network {classes}, whose names are unknown"
    return None


def logits_of(subject: Subject, world: World = ALONE, *, progress: bool = False) -> SavedLogits:
    """The logits of all readable images in one pass; of several processes each gets all.

    Raises:
        UserError: The labels are not the network's, or no image can be read.
    """
    problem = class_mismatch(subject)
    if problem is not None:
        raise world.error(problem)
    loader = subject.loader(world)
    kept = collect_logits(subject.model, loader, progress=progress and world.is_main, world=world)
    skipped = {where: why for each in world.gather(loader.skipped) for where, why in each.items()}
    return _described(subject, kept, skipped)


def kept_logits(subject: Subject, kept: KeptLogits, skipped: dict[str, str], world: World = ALONE) -> SavedLogits:
    """The same from a pass that has been made; a collective.

    Args:
        subject: What made it.
        kept: This process's share.
        skipped: The unreadable images of all processes.
        world: The processes that shared the pass.
    """
    return _described(subject, kept.join(world), skipped)


def _described(subject: Subject, kept: tuple[Any, Any, Any], skipped: dict[str, str]) -> SavedLogits:
    logits, targets, indices = (tensor.numpy() for tensor in kept)
    return SavedLogits(
        logits,
        targets,
        indices,
        classes=subject.meta.classes,
        data=subject.source.description,
        data_id=data_id(subject.source),
        weights=subject.weights,
        network_id=network_id(subject.model, subject.transform),
        softness=float(subject.model.softness),
        skipped=dict(sorted(skipped.items())),
    )


def logits_for(subject: Subject, workspace: Path | None, *, progress: bool = False) -> SavedLogits:
    """The logits, from `workspace` where the same network has left them there for the same images.

    Args:
        subject: Network and images.
        workspace: A folder that keeps them from one analysis to the next, made if absent; None makes the pass anew.
        progress: Draw a bar on stderr during the pass.

    Raises:
        UserError: As for `logits_of`, or the file in the workspace is damaged.
    """
    if workspace is None:
        return logits_of(subject, progress=progress)
    path = make_workspace(workspace) / CACHE_FILE
    if path.is_file():
        try:
            saved = SavedLogits.load(path)
        except UserError:
            raise UserError(f"{path} is damaged, or of another version of illama; delete it") from None
        if (saved.network_id, saved.data_id) == (network_id(subject.model, subject.transform), data_id(subject.source)):
            return saved
    saved = logits_of(subject, progress=progress)
    saved.save(path)
    return saved
