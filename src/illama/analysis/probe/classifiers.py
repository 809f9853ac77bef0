"""Classifiers on frozen features, as pure functions. Letters: n training images, N others, D width, C classes."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from illama.console.progress import WorkProgress
from illama.data.sources.splits import stratified_choice
from illama.errors import UserError

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
    x_nD, y_n, others_ND = (each.cpu().numpy() for each in (train_nD, train_labels, values_ND))
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
            said, _ = _fitted(x_nD[kept], y_n[kept], x_nD[held], strength)
            tried[strength] = 100.0 * int((said == y_n[held]).sum()) / len(held)
            best = max(tried, key=lambda each: tried[each])  # the first of equals
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
