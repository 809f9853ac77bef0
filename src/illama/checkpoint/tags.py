"""The checkpoints of a run by their tags, and which of them the run stands for.

checkpoints/last          the newest
checkpoints/previous      the one before it
checkpoints/best          that of the best evaluation
checkpoints/step-00012500 kept for good
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from illama.checkpoint.folder import DamagedError, current, read_meta, stated_meta
from illama.errors import UserError

CHECKPOINTS = "checkpoints"  # the folder of them in a run's
LAST, PREVIOUS, BEST = "last", "previous", "best"
# Beside `checkpoints`: what the run was begun with, see illama.evaluation.origin.
ORIGIN_FILE, HELD_OUT_FILE = "origin.json", "held_out.csv"
_SWAPS = 3  # a run that is training may replace the folder while it is read; more than once is no coincidence


class Newest(NamedTuple):
    """The checkpoint that a run goes on from.

    Attributes:
        tag: "last" or "previous".
        warning: Why it is not the newest one that was saved; None if it is.
    """

    tag: str
    warning: str | None


def checkpoint_folder(run_dir: Path, tag: str) -> Path:
    """Where the checkpoint with that tag stands in a run's folder."""
    return Path(run_dir) / CHECKPOINTS / tag


def kept_tag(step: int) -> str:
    """The tag of a checkpoint that is kept for good: "step-00012500"."""
    return f"step-{step:08d}"


def kept_tags(run_dir: Path) -> list[str]:
    """Tags of the checkpoints that are kept for good, by step."""
    return sorted(path.name for path in (Path(run_dir) / CHECKPOINTS).glob("step-*") if path.is_dir())


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run has something to go on from, damaged or not."""
    return any(current(checkpoint_folder(run_dir, tag)) is not None for tag in (LAST, PREVIOUS))


def newest_checkpoint(run_dir: Path) -> Newest | None:
    """Which checkpoint a run goes on from: the last one, or the one before it where the last one is damaged.

    Every file is compared with its checksum, so `load_checkpoint(run_dir, tag, verify=False)` may follow.

    Args:
        run_dir: The run's folder; nothing in it is changed.

    Returns:
        The tag, with a warning of one line where the last one is damaged; None for a run without checkpoints.

    Raises:
        UserError: What there is, is damaged.
    """
    damage: dict[str, DamagedError] = {}
    for tag in (LAST, PREVIOUS):
        if current(checkpoint_folder(run_dir, tag)) is None:
            continue
        found = _damage(checkpoint_folder(run_dir, tag))
        if found is None:
            return Newest(tag, _warning(run_dir, damage[LAST]) if damage else None)
        damage[tag] = found
    if len(damage) == 2:
        raise UserError(_nothing_left(run_dir, damage[LAST], damage[PREVIOUS]))
    for found in damage.values():
        raise found
    return None


def _damage(folder: Path) -> DamagedError | None:
    """What is wrong with a checkpoint, which another process may be replacing."""
    for _ in range(_SWAPS):
        before = _identity(folder)
        try:
            read_meta(current(folder) or folder)
        except DamagedError as error:
            found = error
        else:
            return None
        if before is not None and _identity(folder) == before:
            break
    return found


def _identity(folder: Path) -> int | None:
    """Tells a folder from another one that took its name."""
    try:
        return (current(folder) or folder).stat().st_ino
    except OSError:
        return None


def _warning(run_dir: Path, damage: DamagedError) -> str:
    back = checkpoint_folder(run_dir, PREVIOUS)
    return (
        f"{damage.file} {damage.what}: the checkpoint of {_step(damage.file.parent)} is damaged, "
        f"taking the one before it, of {_step(back)} ({back})"
    )


def _step(folder: Path) -> str:
    """A checkpoint's step in words."""
    try:
        return f"step {stated_meta(current(folder) or folder)['step']}"
    except (DamagedError, KeyError):
        return "an unknown step"


def _nothing_left(run_dir: Path, last: DamagedError, previous: DamagedError) -> str:
    others = [tag for tag in (BEST, *kept_tags(run_dir)) if checkpoint_folder(run_dir, tag).is_dir()]
    instead = f"rename {run_dir}/checkpoints/{others[-1]} to last" if others else "start anew in another folder (--out)"
    return (
        f"both checkpoints that {run_dir} could go on from are damaged: {last.file} {last.what}, "
        f"{previous.file} {previous.what}; restore one of them from a copy, or {instead}"
    )
