"""The logits of a network for a data set in one file, so that measures of them need neither again.

FILE.safetensors holds `logits` (N, C) float32, `targets` (N,) int64 and `indices` (N,) int64; its header describes them
in JSON. Letters: N images, C classes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field
from torch import Tensor

from illama.console.text import shown
from illama.errors import UserError
from illama.evaluation.cache import About, TensorFile, checked, make_workspace, read_tensors
from illama.evaluation.classify import collect_logits
from illama.evaluation.origin import data_id, network_id
from illama.evaluation.scores import Answers, refuse_non_finite
from illama.evaluation.subject import Subject

ENDING = ".safetensors"
FORMAT_VERSION = 1
CACHE_FILE = "logits.safetensors"


class _About(About):
    """The description in a file's header."""

    data_id: str
    network_id: str
    softness: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, eq=False)
class SavedLogits(TensorFile):
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

    KEY = "illama_logits"
    ARRAYS = ("logits", "targets", "indices")

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

    def save(self, path: Path, **more: Any) -> None:
        super().save(path, format_version=FORMAT_VERSION, **more)

    @classmethod
    def load(cls, path: Path) -> SavedLogits:
        how = "make it with illama eval CHECKPOINT --save-logits FILE.safetensors"
        tensors, about = read_tensors(path, cls.KEY, "logits", how)
        version = about.pop("format_version", None)
        if version not in (None, FORMAT_VERSION):
            given = f"logits format {shown(version, 40)!r}" if isinstance(version, str) else f"logits format {version}"
            raise UserError(f"{path}: {shown(given, 60)}, this illama reads {FORMAT_VERSION}; update illama")
        description = checked(about, _About)
        if version is None or description is None or set(tensors) != set(cls.ARRAYS):
            raise UserError(f"{path}: its header does not describe logits; save them again")
        parts: dict[str, Any] = {**{name: tensor.numpy() for name, tensor in tensors.items()}, **description}
        return cls(**parts)

    def _misfit(self) -> str | None:
        for name, dtype in {"logits": np.float32, "targets": np.int64, "indices": np.int64}.items():
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
    given = len(subject.source.classes)
    if not subject.meta.classes and given != classes:
        return f"{subject.source.description}: it has {given} classes, the network {classes}, whose names are unknown"
    return None


def logits_of(subject: Subject, *, progress: bool = False) -> SavedLogits:
    """The logits of all readable images in one pass.

    Raises:
        UserError: The labels are not the network's, or no image can be read.
    """
    problem = class_mismatch(subject)
    if problem is not None:
        raise UserError(problem)
    loader = subject.loader()
    kept = collect_logits(subject.model, loader, progress=progress)
    return described(subject, kept, dict(loader.skipped))


def described(subject: Subject, kept: tuple[Tensor, Tensor, Tensor], skipped: dict[str, str]) -> SavedLogits:
    """Logits, targets and positions of a subject's images, and those that could not be read, with what made them."""
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
        saved = SavedLogits.load_kept(path)
        if (saved.network_id, saved.data_id) == (network_id(subject.model, subject.transform), data_id(subject.source)):
            return saved
    saved = logits_of(subject, progress=progress)
    saved.save(path)
    return saved
