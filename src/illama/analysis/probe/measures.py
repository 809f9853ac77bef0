"""Which images a probe is fitted on and tested on, and classifiers on frozen features.

Letters: n training images, N others, D width, C classes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from illama.console.progress import WorkProgress
from illama.data.source import Source, SubsetSource
from illama.data.sources.splits import is_training, stratified_choice
from illama.errors import UserError
from illama.evaluation.scores import percent

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
    train = None
    if subject.data is not None:
        splits = subject.layout.splits
        if subject.data.val_fraction > 0 or subject.data.train_split in splits or any(map(is_training, splits)):
            train = subject.other_split("train")
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
    labels = in_numbers_of(train.source.classes, torch.tensor(test.source.labels), test.source.classes)
    if not covered(labels, torch.tensor(train.source.labels)):
        raise UserError(
            f"{len(labels)} of {len(labels)} test images are of classes without a training image; every class needs at "
            "least two images"
        )
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


CHUNK_VALUES = 1 << 25  # similarities held at a time: 128 MiB
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # scikit-learn's C, the inverse of the penalty
PATIENCE = 2
CHOSEN_ON = 0.2  # share of the training images on which one of them is chosen
MOST_ITERATIONS = 1000
# Multiply-adds of one pass over the images up to which one thread fits: with two on a machine that is busy otherwise,
# 50,000 images of CIFAR-10 took 53 s instead of 7 s, for each short product waits for the slower thread.
ONE_THREAD_UP_TO = 1e9


def knn_votes(
    train_nD: Tensor, train_labels: Tensor, values_ND: Tensor, *, num_classes: int, neighbors: int, temperature: float
) -> Tensor:
    """Votes of the nearest training images for each class, weighted as by DINO (arXiv 2104.14294, section 4.1).

    A neighbour votes for its class with exp(cosine / temperature). All votes for one image are divided by the nearest
    neighbour's, which changes no order and keeps small temperatures finite.

    Args:
        train_nD: Features of the training images; a vector of zeros is at cosine 0 to all.
        train_labels: Their classes, (n,) int64.
        values_ND: Features of the images to classify, on the same device.
        num_classes: C.
        neighbors: How many vote.
        temperature: Greater than 0; the smaller, the more the nearest alone decides.

    Returns:
        (N, C). The largest is the prediction, the first of equal ones.

    Raises:
        UserError: More neighbours than training images.
    """
    if not 1 <= neighbors <= len(train_nD):
        raise UserError(f"{neighbors} neighbors are to vote, but there are {len(train_nD)} training images; ask fewer")
    train_nD = F.normalize(train_nD, dim=1)
    parts = [values_ND.new_zeros(0, num_classes)]
    for chunk_BD in values_ND.split(max(1, CHUNK_VALUES // len(train_nD))):
        cosines_Bk, nearest_Bk = (F.normalize(chunk_BD, dim=1) @ train_nD.T).topk(neighbors, dim=1)
        weights_Bk = ((cosines_Bk - cosines_Bk[:, :1]) / temperature).exp()
        votes_BC = values_ND.new_zeros(len(chunk_BD), num_classes)
        parts.append(votes_BC.scatter_add_(1, train_labels[nearest_Bk], weights_Bk))
    return torch.cat(parts)


@dataclass(frozen=True)
class LinearProbe:
    """What a linear classifier on frozen features predicts.

    Attributes:
        predictions: Class of each image, (N,) int64.
        strength: The C that was chosen.
        chosen_on: Images it was chosen on.
        tried: C -> accuracy on those images in percent.
        converged: Whether the last fit came to its end within `MOST_ITERATIONS`.
    """

    predictions: Tensor
    strength: float
    chosen_on: int
    tried: dict[float, float]
    converged: bool


def linear_probe(train_nD: Tensor, train_labels: Tensor, values_ND: Tensor, *, seed: int) -> LinearProbe:
    """Multinomial logistic regression (scikit-learn, L-BFGS) on features standardised by the training images.

    The strength of the L2 penalty is chosen by accuracy on a seeded fifth of the training images, classes in
    proportion, the strongest of equals; then all training images are fitted. Weaker penalties take longer and longer:
    none is tried after `PATIENCE` in a row that were no better than a stronger one.

    Args:
        train_nD: Features of the training images.
        train_labels: Their classes, (n,) int64.
        values_ND: Features of the images to classify.
        seed: Decides the fifth.

    Raises:
        UserError: One class only, or too few images to choose the strength on.
    """
    x_nD, y_n, others_ND = (values.cpu().numpy() for values in (train_nD, train_labels, values_ND))
    held = stratified_choice(y_n, round(CHOSEN_ON * len(y_n)), seed)
    kept = np.setdiff1d(np.arange(len(y_n)), held)
    if not len(held) or len(np.unique(y_n[kept])) < 2:
        raise UserError(
            f"a linear probe needs training images of at least two classes, some of them to choose its regularisation "
            f"on; got {len(y_n)} of {len(np.unique(y_n))} classes; give more"
        )
    tried: dict[float, float] = {}
    best = STRENGTHS[0]
    with WorkProgress("linear probe", len(STRENGTHS) + 1, "fits") as progress:
        for number, strength in enumerate(STRENGTHS):
            if number - STRENGTHS.index(best) > PATIENCE:
                break
            predicted, _ = _fitted(x_nD[kept], y_n[kept], x_nD[held], strength)
            tried[strength] = percent(predicted == y_n[held])
            best = max(tried, key=tried.__getitem__)  # the first of equals
            progress.advance(1)
        predictions, converged = _fitted(x_nD, y_n, others_ND, best)
    return LinearProbe(torch.from_numpy(predictions), best, len(held), tried, converged)


def _fitted(x_nD: np.ndarray, y_n: np.ndarray, others_ND: np.ndarray, strength: float) -> tuple[np.ndarray, bool]:
    """Classes of the others, and whether the fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    mean_D, deviation_D = x_nD.mean(axis=0), x_nD.std(axis=0)
    deviation_D[deviation_D == 0] = 1
    model = LogisticRegression(C=strength, max_iter=MOST_ITERATIONS)
    threads = 1 if x_nD.size * len(np.unique(y_n)) <= ONE_THREAD_UP_TO else None
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is returned
        # Many classes of few images each are asked for here; scikit-learn takes their numbers for a regression's.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%", UserWarning)
        model.fit((x_nD - mean_D) / deviation_D, y_n)
    return model.predict((others_ND - mean_D) / deviation_D), bool(model.n_iter_.max() < MOST_ITERATIONS)
