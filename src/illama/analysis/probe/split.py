"""Which images a probe is fitted on, and which it is tested on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from illama.data.source import Source, SubsetSource
from illama.data.sources.splits import is_training, stratified_choice
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.evaluation.subject import Subject

HELD_OUT = 0.2  # share of the images that tests where the data has no training split


class ProbeSplit(NamedTuple):
    """Two sets of images without a common one.

    Attributes:
        train: The same network on the train images.
        test: The same network on the test images.
        how: Where they come from, for people.
    """

    train: Subject
    test: Subject
    how: str


def split_for_probe(subject: Subject, train_images: int, seed: int) -> ProbeSplit:
    """Fit on the training split and test on the subject's images.

    Where the data has no training split, or the subject's images are of it, a seeded fifth of the subject's images,
    classes in proportion, is tested on and the others are fitted on.

    Args:
        subject: Which network, on which images.
        train_images: At most so many to fit on, classes in proportion; 0 takes all.
        seed: Decides which.

    Raises:
        UserError: The training split cannot be opened, all its images are of one class, or none is of a class that
            is tested.
    """
    train = subject.other_split("train") if _has_training_split(subject) else None
    if train is None or _share_an_image(train.source, subject.source):
        why = "The data has no training split" if train is None else "These images are of the training split"
        train, test = _carved(subject, seed)
        how = f"{why}, so {len(test.source):,} of them, chosen by seed {seed}, are held out as test images."
    else:
        test, how = subject, "Fitted on the training split."
    if 0 < train_images < len(train.source):
        chosen = stratified_choice(train.source.labels, train_images, seed)
        why = f"{train_images} of {len(train.source)} chosen by seed {seed}, classes in proportion"
        train = train.on(SubsetSource(train.source, chosen, why))
    present = np.unique(train.source.labels)
    if len(present) < 2:
        names = ", ".join(train.source.classes[label] for label in present)
        raise UserError(f"{train.source.description}: all are of one class ({names}), so there is nothing to classify")
    _refuse_uncovered(train.source, test.source)
    return ProbeSplit(train, test, how)


def in_numbers_of(classes: tuple[str, ...], labels: Tensor, own: tuple[str, ...]) -> Tensor:
    """Labels (N,) of images whose classes are called `own`, as positions in `classes`.

    A split that lacks a class's folder counts the classes behind it differently.

    Raises:
        UserError: An image's class is not among `classes`.
    """
    if classes == own:
        return labels
    number = {name: i for i, name in enumerate(classes)}
    unknown = sorted({own[label] for label in labels.unique().tolist()} - number.keys())
    if unknown:
        raise UserError(
            f"there are test images of class {unknown[0]!r}, but that class is not in the training split; add it there"
        )
    return torch.tensor([number.get(name, -1) for name in own])[labels]


def covered(labels: Tensor, train_labels: Tensor) -> int:
    """Test images (N,) whose class has a training image (n,)."""
    return int(torch.isin(labels, train_labels).sum())


def _refuse_uncovered(train: Source, test: Source) -> None:
    labels = in_numbers_of(train.classes, torch.tensor(test.labels), test.classes)
    if not covered(labels, torch.tensor(train.labels)):
        raise UserError(
            f"{len(labels)} of {len(labels)} test images are of classes without a training image; every class needs at "
            "least two images"
        )


def _has_training_split(subject: Subject) -> bool:
    if subject.data is None:
        return False
    splits = subject.layout.splits
    return subject.data.val_fraction > 0 or subject.data.train_split in splits or any(map(is_training, splits))


def _share_an_image(one: Source, other: Source) -> bool:
    places = {one.location(i) for i in range(len(one))}
    return any(other.location(i) in places for i in range(len(other)))


def _carved(subject: Subject, seed: int) -> tuple[Subject, Subject]:
    source = subject.source
    held = stratified_choice(source.labels, round(HELD_OUT * len(source)), seed)
    if not len(held):
        raise UserError(f"{source.description}: too few to hold some out; give at least 3")
    kept = np.setdiff1d(np.arange(len(source)), held)
    test = subject.on(SubsetSource(source, held, f"{len(held)} held out by seed {seed}"))
    return subject.on(SubsetSource(source, kept, f"{len(kept)} to fit on")), test
