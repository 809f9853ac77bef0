"""Accuracy on other images of ImageNet's classes, one row per set, and the error under corruption."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from illama.analysis.imagenet_answers import ImagenetAnswers, answers, not_imagenet
from illama.analysis.options import RobustnessOptions
from illama.analysis.result import AnalysisResult
from illama.analysis.robustness.figures import Corrupted, SetRow, robustness_finding
from illama.analysis.robustness.measures import (
    SETS,
    ImageSet,
    as_imagenet,
    find_corrupted,
    open_set,
    read_real,
    score_real,
    scores_among,
    validation_numbers,
)
from illama.console.json_text import read_json
from illama.console.progress import WorkProgress
from illama.data.imagenet import NUM_CLASSES, wnids
from illama.data.source import Source
from illama.errors import UserError
from illama.evaluation.cache import make_workspace
from illama.evaluation.origin import data_id, network_id
from illama.evaluation.subject import Subject
from illama.system.files import write_file
from illama.system.given_file import at_home

MEMORY_FILE = "robustness.json"
Labels = list[list[int]]


def why_not(subject: Subject, options: RobustnessOptions) -> str | None:
    """Why this cannot be done for this network and these images, in one line; None if it can."""
    given = [name for name, path in dataclasses.asdict(options).items() if path is not None]
    if not given:
        return (
            "no robustness set is given; add folders: --imagenet-v2 FOLDER (in a report: robustness.imagenet_v2=FOLDER)"
        )
    if given == ["real"] and not (subject.has_images and _is_imagenet(subject.source)):
        return "ImageNet-ReaL has labels for ImageNet's validation images; add --imagenet FOLDER"
    return not_imagenet(subject)


def robustness(subject: Subject, options: RobustnessOptions, workspace: Path | None = None) -> AnalysisResult:
    """Accuracy of a network with ImageNet-1K's classes on each set that is given.

    Args:
        subject: The network. Its own images are the reference where their classes are ImageNet's.
        options: Where the sets are.
        workspace: Folder that remembers the result of each pass, so that an interrupted call goes on where it was.

    Raises:
        UserError: A folder or the network does not fit.
    """
    problem = why_not(subject, options)
    if problem is not None:
        raise UserError(f"robustness cannot be measured: {problem}")
    labels = None if options.real is None else read_real(_path(options.real))
    channels = subject.meta.config.in_chans
    opened = {
        name: open_set(which, _path(path), channels)
        for name, which in SETS.items()
        if (path := getattr(options, name)) is not None
    }
    corrupted = {} if options.imagenet_c is None else find_corrupted(_path(options.imagenet_c))
    memory = _Memory(subject, workspace)
    rows = _reference(subject, opened.pop("imagenet", None), labels, memory)
    rows += [_remembered_row(memory, name, subject, source) for name, source in opened.items()]
    return robustness_finding(rows, _corrupted(subject, corrupted, memory) if corrupted else None)


def _path(text: str) -> Path:
    return at_home(text)


def _is_imagenet(source: Source) -> bool:
    return bool(source.classes) and set(source.classes) <= set(wnids())


class _Memory:
    """Results of passes in a file, found again by all that they depend on."""

    def __init__(self, subject: Subject, workspace: Path | None) -> None:
        self._file = None if workspace is None else workspace / MEMORY_FILE
        self._network = "" if workspace is None else network_id(subject.model, subject.transform)

    def recall(self, what: list[Any], source: Source, compute: Callable[[], list[dict[str, Any]]]) -> list[Any]:
        """`compute()`, or what it returned for the same network, images and `what` before."""
        if self._file is None:
            return compute()
        columns = [column.name for column in dataclasses.fields(SetRow)]  # what is remembered of a set
        parts = [self._network, data_id(source), source.description, what, columns]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        known = self._read()
        if key not in known:
            known[key] = compute()
            self._write(known)
        return known[key]

    def _read(self) -> dict[str, Any]:
        assert self._file is not None
        try:
            known = read_json(self._file)
            if not isinstance(known, dict):
                raise ValueError("no JSON object")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise UserError(f"{self._file} cannot be read ({error}); remove it to measure everything again") from None
        return known

    def _write(self, known: dict[str, Any]) -> None:
        assert self._file is not None
        text = json.dumps(known, indent=1)
        make_workspace(self._file.parent)
        try:
            write_file(self._file, text.encode())
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror or error}; give another folder") from error


def _reference(subject: Subject, opened: Source | None, labels: Labels | None, memory: _Memory) -> list[SetRow]:
    """ImageNet itself and, from the same pass, by ReaL's labels; nothing where there are no such images."""
    which = SETS["imagenet"]
    if opened is None:
        if not (subject.has_images and _is_imagenet(subject.source)):
            if labels is not None:
                raise UserError("ImageNet-ReaL has labels for ImageNet's validation images; add --imagenet FOLDER")
            return []
        opened = as_imagenet(subject.source, subject.source.description)
        which = ImageSet("given images", None, "those that the report as a whole is about")
    source = opened
    numbers = None if labels is None else validation_numbers(source)

    def compute() -> list[dict[str, Any]]:
        found = answers(subject, source)
        rows = [_row(which, source, found)]
        if labels is not None and numbers is not None:
            rows.append(_real_row(source, found, numbers, labels))
        return [dataclasses.asdict(row) for row in rows]

    judged_by = None if labels is None else hashlib.sha256(json.dumps(labels).encode()).hexdigest()
    return [SetRow(**plain) for plain in memory.recall(["imagenet", judged_by], source, compute)]


def _remembered_row(memory: _Memory, name: str, subject: Subject, source: Source) -> SetRow:
    which = SETS[name]
    plain = memory.recall([name], source, lambda: [dataclasses.asdict(_row(which, source, answers(subject, source)))])
    return SetRow(**plain[0])


def _row(which: ImageSet, source: Source, found: ImagenetAnswers) -> SetRow:
    scores = scores_among(found.logits, found.labels, which.classes)
    return SetRow(
        title=which.title,
        top1=scores.top(1),
        top5=scores.top(5),
        hits=int((scores.ranks == 0).sum()),
        images=len(found.labels),
        full_images=which.images,
        classes=len(set(found.labels.tolist())),
        full_classes=len(which.classes),
        skipped=found.skipped,
        data=source.description,
        note=f"{which.about}; {source.description}.",
    )


def _real_row(source: Source, found: ImagenetAnswers, numbers: Tensor, labels: Labels) -> SetRow:
    real = score_real(found.logits, numbers[found.positions], labels)
    return SetRow(
        title="ImageNet-ReaL",
        top1=100 * real.hits / real.images,
        top5=None,
        hits=real.hits,
        images=real.images,
        full_images=sum(map(bool, labels)),
        classes=len(set(found.labels.tolist())),
        full_classes=NUM_CLASSES,
        skipped=found.skipped,
        data=source.description,
        note="the same images by corrected labels, of which one may have several (Beyer et al., 2020); "
        f"images without any are left out ({real.unlabelled:,}).",
    )


def _corrupted(subject: Subject, folders: dict[tuple[str, int], Path], memory: _Memory) -> Corrupted:
    """ImageNet-C. Its images are 224 px squares, cropped from ImageNet's, and its authors show them as they are."""
    transform = dataclasses.replace(subject.transform, mode="none")
    errors: dict[str, dict[int, float]] = {}
    images = skipped = 0
    with WorkProgress("ImageNet-C", len(folders), "sets") as progress:
        for (name, severity), folder in folders.items():
            source = open_set(SETS["imagenet"], folder, subject.meta.config.in_chans)

            def compute(source: Source = source) -> list[dict[str, Any]]:
                found = answers(subject, source, transform)
                return [dataclasses.asdict(_row(SETS["imagenet"], source, found))]

            row = SetRow(**memory.recall(["imagenet_c", name, severity], source, compute)[0])
            errors.setdefault(name, {})[severity] = 1 - row.hits / row.images
            images, skipped = images + row.images, skipped + row.skipped
            progress.advance(1)
    return Corrupted(errors, images, skipped)
