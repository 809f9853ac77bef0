"""Splits of a data set: which names stand for which, which one evaluates, and seeded subsets that keep the shares."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from illama.errors import UserError

Role = Literal["train", "validation", "test"]

# Spellings, in any case; the first that exists is taken. A following set, data, images or split, and digits, do not
# count: Test_Set, train2017.
SPELLINGS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_ROLES: dict[str, Role] = {word: role for role, words in SPELLINGS.items() for word in words}
_SUFFIX = re.compile(r"[-_. ]?(set|data|images|imgs|split)?[-_. ]?\d*$")
_AFFIX = re.compile(rf"(?:(?P<head>.+)[-_. ])?(?P<word>{'|'.join(_ROLES)})(?:[-_. ](?P<tail>.+))?")


def role_of(name: str) -> Role | None:
    """What a split of that name is for; None for a name that is no split's."""
    lower = name.strip().lower()
    return _ROLES.get(lower) or _ROLES.get(_SUFFIX.sub("", lower, count=1))


def roles_of(names: Collection[str]) -> dict[str, Role]:
    """Which of some names that stand side by side are splits', and of what role.

    Besides the usual spellings those count that differ in such a word only: seg_train with seg_test. One of them alone
    does not, for a bullet_train is no split.
    """
    roles = {name: role for name in names if (role := role_of(name)) is not None}
    families: dict[tuple[str | None, str | None], dict[str, Role]] = {}
    for name in names:
        match = _AFFIX.fullmatch(name.strip().lower())
        if match is not None and name not in roles:
            families.setdefault((match["head"], match["tail"]), {})[name] = _ROLES[match["word"]]
    for family in families.values():
        if "train" in family.values() and len(set(family.values())) > 1:
            roles |= family
    return roles


def is_training(split: str) -> bool:
    """Whether a split of that name is for training."""
    return role_of(split) == "train"


def choose_split(wanted: str, existing: Sequence[str], where: str) -> str:
    """The split to read.

    Args:
        wanted: A split's own name, another spelling of it, or "auto" for the first to evaluate on: validation before
            test.
        existing: The names that there are.
        where: The data set, for messages.

    Raises:
        UserError: There is no such split, or several spellings of it; the message lists those that exist.
    """
    listed = ", ".join(existing) or "none"
    if wanted in existing:
        return wanted
    roles = roles_of(existing)
    if wanted == "auto":
        found = [name for role in ("validation", "test") for name in existing if roles.get(name) == role]
        if not found:
            usual = ", ".join((*SPELLINGS["validation"][:4], SPELLINGS["test"][0]))
            raise UserError(
                f"{where} has no split to evaluate on (looked for {usual}; found: {listed}); "
                "name one with data.eval_split, or carve one out of the training images with data.val_fraction=0.1"
            )
        found = [name for name in found if roles[name] == roles[found[0]]]
    else:
        found = [name for name, role in roles.items() if role == role_of(wanted)]
    if not found:
        raise UserError(f"{where} has no split {wanted!r}; splits found: {listed}")
    best = min(_rank(name) for name in found)
    same = [name for name in found if _rank(name) == best]
    if len(same) > 1 or (roles[found[0]] == "train" and len(found) > 1):
        key = "data.train_split" if roles[found[0]] == "train" else "data.eval_split"
        raise UserError(f"{where} has {' and '.join(found)}; say which is meant with {key}=NAME")
    return same[0]


def _rank(name: str) -> int:
    """Place of a spelling in the order of preference."""
    words = SPELLINGS[_ROLES[word]] if (word := name.strip().lower()) in _ROLES else ()
    return words.index(word) if words else len(_ROLES)


def in_order(names: Collection[str]) -> list[str]:
    """Splits for training first, then for validation, then for tests, then the others; the usual spellings first."""
    roles, order = roles_of(names), list(SPELLINGS)
    return sorted(
        names, key=lambda name: (order.index(roles[name]) if name in roles else len(order), _rank(name), name)
    )


def only_split(names: Collection[str], *named: str) -> str | None:
    """The one name there is, if it is no split's: then it is the whole data set's. None where there are splits.

    Args:
        names: Of the parts of a data set.
        named: Names that are asked for as splits.
    """
    name = next(iter(names), "")
    return name if len(names) == 1 and role_of(name) is None and name not in named else None


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
