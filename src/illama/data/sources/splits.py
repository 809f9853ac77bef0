"""Splits and classes of a data set: which names stand for which, their order, what differs between two lists of them.

The order of classes is total and the same in every process: by the name with its digits read as numbers and without
regard to case ("a2" before "a10"), and by the name itself where two are equal so ("A" before "a").
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import numpy as np

from illama.console.text import shown
from illama.data.sources.table import plain
from illama.errors import UserError

_NAMED = 3  # names in a message
_DIGITS = re.compile(r"(\d+)")
T = TypeVar("T")
Role = Literal["train", "validation", "test"]
# Spellings, in any case; the first that exists is taken. A following set, dataset, data, images or split,
# and digits, do not count: Test_Set, train2017.
SPELLINGS: dict[Role, tuple[str, ...]] = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "devel", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_ROLES: dict[str, Role] = {word: role for role, words in SPELLINGS.items() for word in words}
_SUFFIX = re.compile(r"[-_. ]?(set|dataset|data|images|imgs|split)?[-_. ]?\d*$")
# Columns of tables, in small letters and digits: those that tell the split, those that do if they name splits, and
# those that say yes or no.
SPLIT_COLUMNS = ("split", "splits", "subset", "partition", "datasplit", "datasetsplit")
_SPLIT_COLUMNS_AT_TIMES = ("set", "dataset", "fold", "phase", "usage", "role", "mode")
_FLAG = re.compile(r"(is|in)(?P<word>train|training|val|valid|validation|test|testing)(image|sample|set|split)?")
_YES, _NO = ("1", "1.0", "true", "yes", "y", "t"), ("0", "0.0", "false", "no", "n", "f")
_PART = re.compile(r"(?P<stem>.+)[-_](?P<number>\d+)-of-(?P<total>\d+)\b")  # of a split in several files
_AFFIX = re.compile(rf"(?:(?P<head>.+)[-_. ])?(?P<word>{'|'.join(_ROLES)})(?:[-_. ](?P<tail>.+))?")


def natural_key(text: str) -> tuple[list[int | str], str]:
    """Sorts names with numbers as people expect; no two different texts are equal."""
    parts = _DIGITS.split(text.lower())
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], text


def class_of_folder(name: str, where: str) -> str:
    """The class that a folder, or several with slashes between, is named for: the same in every locale, composed (NFC).

    Args:
        name: As the file system spells it.
        where: The folder, for messages.

    Raises:
        UserError: The name is no UTF-8, so no file could say it.
    """
    try:
        return composed(os.fsencode(name).decode())
    except UnicodeDecodeError:
        raise UserError(
            f"class folder {shown(where)} has a name that is not UTF-8; rename it (convmv -f latin1 -t utf8 does many)"
        ) from None


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): two names that look equal are equal."""
    return unicodedata.normalize("NFC", name)


def class_order(names: Iterable[str]) -> list[str]:
    """Class names in the order in which they are numbered."""
    return sorted(names, key=natural_key)


def few(names: Sequence[str]) -> str:
    """Names for people: all of a few, of many the first and the last."""
    if len(names) <= 2 * _NAMED:
        return ", ".join(map(shown, names))
    return f"{', '.join(map(shown, names[:_NAMED]))}, ..., {shown(names[-1])}"


def difference(before: Sequence[str], now: Sequence[str]) -> str | None:
    """What differs between two numberings, in a few words; None where nothing does.

    Args:
        before: Class names in index order, as a run or a network has them.
        now: As the data has them.
    """
    old, new = [*map(composed, before)], [*map(composed, now)]
    if old == new:
        return None
    gone = [name for name in old if name not in set(new)]
    come = [name for name in new if name not in set(old)]
    parts = [f"{len(gone)} no more there ({few(gone)})"] if gone else []
    parts += [f"{len(come)} new ({few(come)})"] if come else []
    return ", ".join(parts) or f"their order ({few(old)}; now {few(new)})"


def role_of(name: str) -> Role | None:
    """What a split of that name is for; None for a name that is no split's."""
    lower = name.strip().lower()
    return _ROLES.get(lower) or _ROLES.get(_SUFFIX.sub("", lower, count=1))


def role_at_start(name: str) -> Role | None:
    """What a name that begins with a split's is for: trainA, test_b."""
    start = re.match("|".join(sorted(_ROLES, key=len, reverse=True)), name.lower())
    return _ROLES[start[0]] if start else None


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
        names = [name for role in ("validation", "test") for name in existing if roles.get(name) == role]
        if not names:
            usual = ", ".join((*SPELLINGS["validation"][:4], SPELLINGS["test"][0]))
            raise UserError(
                f"{where} has no split to evaluate on (looked for {usual}; found: {listed}); "
                "name one with data.eval_split, or carve one out of the training images with data.val_fraction=0.1"
            )
        names = [name for name in names if roles[name] == roles[names[0]]]
    else:
        names = [name for name, role in roles.items() if role == role_of(wanted)]
    if not names:
        raise UserError(f"{where} has no split {wanted!r}; splits found: {listed}")
    best = min(_rank(name) for name in names)
    same = [name for name in names if _rank(name) == best]
    if len(same) > 1 or (roles[names[0]] == "train" and len(names) > 1):
        key = "data.train_split" if roles[names[0]] == "train" else "data.eval_split"
        raise UserError(f"{where} has {' and '.join(names)}; say which is meant with {key}=NAME")
    return same[0]


def _rank(name: str) -> int:
    """Place of a spelling in the order of preference."""
    words = SPELLINGS[_ROLES[word]] if (word := name.strip().lower()) in _ROLES else ()
    return words.index(word) if words else len(_ROLES)


def split_order(names: Collection[str]) -> list[str]:
    """Splits for training first, then for validation, then for tests, then the others; the usual spellings first."""
    roles, order = roles_of(names), list(SPELLINGS)
    return sorted(
        names, key=lambda name: (order.index(roles[name]) if name in roles else len(order), _rank(name), name)
    )


def whole_or_splits(by_split: dict[str, T], *named: str) -> dict[str, T]:
    """The parts of a data set by split, under "" where the one there is has no split's name: it is the whole then.

    Args:
        by_split: The parts by name.
        named: Names that are asked for as splits.
    """
    name = next(iter(by_split), "")
    is_whole = len(by_split) == 1 and role_of(name) is None and name not in named
    return {"": by_split[name]} if is_whole else by_split


def split_in_name(file_name: str) -> str:
    """The split that a shard belongs to: "train" for train-00000-of-00003.parquet, train.tar, train-0001.tar."""
    stem = re.sub(r"(\.[A-Za-z]+)+$", "", file_name)
    return re.sub(r"[-_.]\d+(-of-\d+)?(-[0-9a-f]+)?$", "", stem)


def is_split_folder(name: str) -> bool:
    """Whether a folder is named for a split; "partial-" is what the hub's converter writes where it stopped at 5 GB."""
    return role_of(name.removeprefix("partial-")) is not None


def split_of_path(path: str) -> str | None:
    """The split in a file's name, or in that of a folder above it; None where neither is a split's."""
    *folders, name = path.split("/")
    own = split_in_name(name)
    return own if role_of(own) is not None else next(filter(is_split_folder, reversed(folders)), None)


def missing_parts(files: Sequence[str], where: str) -> str | None:
    """What to say of a split whose files, named like train-00001-of-00003, are not all there; None where nothing is.

    Args:
        files: Names of the files of one split.
        where: The data set, for messages.

    Raises:
        UserError: Files of two numberings: of two versions of the data set, which hold the same pictures.
    """
    there: dict[str, dict[int, set[int]]] = {}  # by stem and by number of parts
    for part in filter(None, map(_PART.match, files)):
        there.setdefault(part["stem"], {}).setdefault(int(part["total"]), set()).add(int(part["number"]))
    missing, wanted = [], 0
    for stem, by_total in there.items():
        if len(by_total) > 1:
            raise UserError(
                f"{where} has files {shown(stem)}-...-of-... of {' and of '.join(map(str, sorted(by_total)))} parts, "
                "so of two versions of the data set, which would be read together; remove one of them"
            )
        ((total, numbers),) = by_total.items()
        wanted += total
        if total - len(numbers) > 0:
            first = next(number for number in range(total) if number not in numbers)
            missing.append((f"{stem}-{first:05d}-of-{total:05d}", total - len(numbers)))
    if not missing:
        return None
    count = sum(number for _, number in missing)
    verb = "is" if count == 1 else "are"
    return f"ATTENTION: {count} of {wanted} parts {verb} not there ({shown(missing[0][0])}): not all of it is read"


def is_split_column(name: str) -> bool:
    """Whether a column of that name may tell the split of a row."""
    name = plain(name)
    return name in (*SPLIT_COLUMNS, *_SPLIT_COLUMNS_AT_TIMES) or _FLAG.fullmatch(name) is not None


def split_column(
    columns: Mapping[str, Sequence[str | None]], asked: Collection[str], where: str
) -> tuple[str, Callable[[str], str]] | None:
    """The column of a table that tells the split of each row, and the split that a cell of it stands for.

    It is called split or the like; or it is called is_valid or the like and says yes or no; or it is called fold or the
    like and names splits; or it holds nothing but the names of splits, of one for training and others.

    Args:
        columns: The cells of each column that may be it, None where there is nothing.
        asked: Splits that the recipe names.
        where: The table, for messages.

    Raises:
        UserError: A column is_valid or the like says something else than yes and no.
    """
    values = {name: {cell for cell in cells if cell is not None} for name, cells in columns.items()}
    roles = {name: {role_of(value) for value in own} for name, own in values.items()}
    names_splits = [
        name for name in columns if "train" in roles[name] and len(roles[name]) > 1 and None not in roles[name]
    ]
    for name in columns:
        if plain(name) in SPLIT_COLUMNS:
            return name, str
    for name in columns:
        flag = _FLAG.fullmatch(plain(name))
        if flag is not None and name not in names_splits:
            odd = sorted(value for value in values[name] if value.lower() not in (*_YES, *_NO))
            if odd:
                raise UserError(
                    f"{where}, column {shown(name)}, says {shown(odd[0])!r}, expected yes or no ({', '.join(_YES)} or "
                    f"{', '.join(_NO)}), or the names of splits in a column split"
                )
            yes = _ROLES[flag["word"]]
            no = "test" if yes == "train" else "train"
            return name, lambda cell, yes=yes, no=no: yes if cell.lower() in _YES else no
    for name in columns:
        if plain(name) in _SPLIT_COLUMNS_AT_TIMES and (roles[name] - {None} or values[name] & set(asked)):
            return name, str
    return (names_splits[0], str) if names_splits else None


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
