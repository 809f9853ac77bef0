"""Splits of a data set: which one evaluates, and seeded subsets that keep the classes' shares."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from illama.errors import UserError

EVAL_SPLITS = ("validation", "val", "valid", "test", "eval")
TRAIN_SPLITS = ("train", "training")
# Names of the same thing: whoever asks for one gets the other where only that exists.
_SYNONYMS = (TRAIN_SPLITS, ("validation", "val", "valid", "eval"))


def choose_split(wanted: str, existing: Sequence[str], where: str) -> str:
    """The split to read: `wanted`, or for "auto" the first evaluation split there is.

    Raises:
        UserError: There is no such split; the message lists those that exist.
    """
    listed = ", ".join(existing) or "none"
    if wanted == "auto":
        for name in EVAL_SPLITS:
            if name in existing:
                return name
        raise UserError(
            f"{where} has no split to evaluate on (looked for {', '.join(EVAL_SPLITS)}; found: {listed}); "
            "name one with data.eval_split, or carve one out of the training images with data.val_fraction=0.1"
        )
    if wanted in existing:
        return wanted
    for names in _SYNONYMS:
        for name in names:
            if wanted in names and name in existing:
                return name
    raise UserError(f"{where} has no split {wanted!r}; splits found: {listed}")


def split_in_name(file_name: str) -> str:
    """The split that a shard belongs to: "train" for train-00000-of-00003.parquet, train.tar, train-0001.tar."""
    stem = re.sub(r"(\.[A-Za-z]+)+$", "", file_name)
    return re.sub(r"[-_.]\d+(-of-\d+)?(-[0-9a-f]+)?$", "", stem)


def stratified_choice(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` positions at random so that every class keeps its share (largest remainders).

    Args:
        labels: Class of each image, (n,) integers.
        count: How many to choose; all when there are no more than that.
        seed: The choice depends on it and on `labels` alone. numpy's frozen legacy generator draws, so that a
            held-out split stays the same in every version.

    Returns:
        Sorted positions, (min(count, n),) int64.
    """
    if count >= len(labels):
        return np.arange(len(labels))
    random_state = np.random.RandomState(seed)
    order = random_state.permutation(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    exact = sizes * (count / len(labels))
    quota = np.floor(exact).astype(np.int64)
    # ties between equal remainders go to random classes, else small subsets would prefer low class numbers
    remainder_order = np.lexsort((random_state.permutation(len(classes)), quota - exact))
    quota[remainder_order[: count - quota.sum()]] += 1
    shuffled = labels[order]
    chosen = [order[shuffled == c][:q] for c, q in zip(classes, quota, strict=True)]
    return np.sort(np.concatenate(chosen))
