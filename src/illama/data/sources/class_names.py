"""Class names: what a folder's name stands for, their order, and what differs between two lists of them.

The order is total and the same in every process: by the name with its digits read as numbers and without regard to case
("a2" before "a10"), and by the name itself where two are equal so ("A" before "a").
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

from illama.console.text import shown
from illama.errors import UserError

_NAMED = 3  # names in a message
_DIGITS = re.compile(r"(\d+)")


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
