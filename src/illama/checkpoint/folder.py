"""A folder of files that is replaced as a whole: at every instant a complete one can be read.

    last/            the checkpoint
    previous/        the one before it, where the caller keeps one
    .last.new-XX/    being written, under a name that nobody can have prepared; becomes `last` when complete and on disk
    .last.old/       the former `last` on its way out; so .previous.old/
    .last.damaged/   a former `last` that its checksums convicted, on its way out

With a `previous` the renames are: `previous` aside, `last` to `previous`, the new one to `last`. A crash may fall
between any two; then `last`, `previous` or what was set aside is complete, and the next save tidies up. A link in the
place of a folder is treated as the folder it leads to, which stays as it is when the link makes way.

On disk before it counts: the files, then the folder that lists them, then the renames, then their folder.

Those of a run have tags, which say what it stands for:

    checkpoints/last          the newest
    checkpoints/previous      the one before it
    checkpoints/best          that of the best evaluation
    checkpoints/step-00012500 kept for good
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError

from illama.console.text import read_json
from illama.errors import UserError
from illama.system.files import make_folder, remove, to_disk

CHECKPOINTS = "checkpoints"  # the folder of them in a run's
LAST, PREVIOUS, BEST = "last", "previous", "best"
# Beside `checkpoints`: what the run was begun with, see illama.evaluation.origin.
ORIGIN_FILE, HELD_OUT_FILE = "origin.json", "held_out.csv"
META_FILE = "meta.json"
_SUMMED = (".safetensors", ".pt")  # endings of files that have to have a sum
_SUM = re.compile(r"[0-9a-f]{64}")
FILE_SUMS, FILE_BYTES, OWN_SUM = "sha256", "bytes", "sha256_of_meta"  # keys of meta.json
_OLD, _DAMAGED, _NEW = "old", "damaged", "new"  # endings of the folders beside, above
_SWAPS = 3  # a run that is training may replace the folder while it is read; more than once is no coincidence
Writer = Callable[[Path], None]


class DamagedError(UserError):
    """A file of a checkpoint is missing or not what was saved.

    Attributes:
        file: Which one.
        what: What is wrong with it, as the end of a sentence.
    """

    def __init__(self, file: Path, what: str) -> None:
        super().__init__(
            f"checkpoint damaged: {file} {what}; restore it from a copy, or delete {file.parent} to do without"
        )
        self.file, self.what = file, what


def current(folder: Path) -> Path | None:
    """The folder that holds the checkpoint at this moment, or None if there is none. Changes nothing."""
    if folder.is_dir():  # first: "." has no name that another folder's could be made of
        return folder
    return aside if folder.name and (aside := _beside(folder, _OLD)).is_dir() else None


def replace_folder(
    folder: Path, writers: Mapping[str, Writer], meta: dict[str, Any], needed_bytes: int, previous: Path | None = None
) -> None:
    """Write a folder's files, then put it in the place of the former one.

    Args:
        folder: The folder to replace or create.
        writers: File name -> function that writes that file.
        meta: Content of meta.json; sizes and SHA-256 sums of the files and the sum of meta.json's content are added.
        needed_bytes: About how much space the new files take, for the message.
        previous: Where the former folder goes, in the same parent; None deletes it. A former folder that differs
            from its checksums never goes there: it is deleted, and what stands there stays.

    Raises:
        UserError: The disk is full, the folder cannot be written to, ...; the former folder is untouched.
    """
    with _replaced(folder, needed_bytes, previous) as new:
        sums = {}
        for name, write in writers.items():
            write(new / name)
            to_disk(new / name)
            sums[name] = sha256(new / name)
        sizes = {name: (new / name).stat().st_size for name in writers}
        content = meta | {FILE_SUMS: sums, FILE_BYTES: sizes}
        (new / META_FILE).write_text(json.dumps(content | {OWN_SUM: _sum_of(content)}, indent=1) + "\n")
        to_disk(new / META_FILE)


def link_folder(source: Path, folder: Path) -> None:
    """Make `folder` another name of the files in `source`; they are copied where the disk has no hard links.

    Raises:
        UserError: As `replace_folder`.
    """
    files = sorted(path for path in source.iterdir() if path.is_file())
    with _replaced(folder, sum(file.stat().st_size for file in files)) as new:
        for file in files:
            try:
                os.link(file, new / file.name)
            except OSError:  # another file system, one without links, or too many of them: copying tells what is wrong
                shutil.copyfile(file, new / file.name)
                to_disk(new / file.name)


def read_meta(folder: Path, *, verify: bool = True) -> dict[str, Any]:
    """Content of meta.json, after comparing every file with its SHA-256 sum.

    Args:
        folder: A checkpoint's folder.
        verify: Whether to read the files for that; otherwise they only have to be there.

    Raises:
        DamagedError: A file is missing or not what was saved; the message names it.
    """
    meta = stated_meta(folder)
    sums = meta[FILE_SUMS]
    if not sums or not all(_SUM.fullmatch(str(one)) and "/" not in name for name, one in sums.items()):
        raise DamagedError(folder / META_FILE, "does not list the files with their checksums")
    try:
        unlisted = [file for file in sorted(folder.iterdir()) if file.suffix in _SUMMED and file.name not in sums]
    except OSError as error:
        raise DamagedError(folder, f"cannot be read ({error.strerror or error})") from None
    if unlisted:
        raise DamagedError(unlisted[0], f"has no checksum in {META_FILE}")
    for name, expected in sums.items():
        file, bytes_before = folder / name, meta[FILE_BYTES].get(name)
        try:
            status = file.stat()
        except OSError:  # also one that a run which trains has just replaced
            raise DamagedError(file, "is missing") from None
        if not stat.S_ISREG(status.st_mode):
            raise DamagedError(file, "is missing")
        if bytes_before not in (None, status.st_size):  # a sparse file of any size would be read for hours
            sizes = f"{status.st_size} bytes instead of {bytes_before!s:.20}"
            raise DamagedError(file, f"differs from what was saved: {sizes}")
        try:
            if verify and sha256(file) != expected:
                raise DamagedError(file, "differs from the checksum taken when it was saved")
        except OSError as error:
            raise DamagedError(file, f"cannot be read ({error.strerror or error})") from None
    return meta


def stated_meta(folder: Path) -> dict[str, Any]:
    """Content of meta.json, whatever became of the other files.

    Raises:
        DamagedError: It is missing, or differs from its own sum.
    """
    try:
        meta = dict(read_json(folder / META_FILE))
        own = meta.pop(OWN_SUM, None)  # checkpoints of illama 0.1.0 have none
        sums, sizes = dict(meta[FILE_SUMS]), dict(meta.get(FILE_BYTES, {}))  # older checkpoints have no sizes
    except (OSError, ValueError, KeyError, TypeError):
        raise DamagedError(folder / META_FILE, "is not readable") from None
    if own is not None and own != _sum_of(meta):
        raise DamagedError(folder / META_FILE, "differs from what was saved")
    return meta | {FILE_SUMS: sums, FILE_BYTES: sizes}


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _replaced(folder: Path, needed_bytes: int, previous: Path | None = None) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` at the end; errors are told as the user's."""
    new = _beside(folder, f"{_NEW}-{secrets.token_hex(8)}")
    try:
        make_folder(folder.parent)
        _tidy(folder, previous)
        new.mkdir()
        to_disk(folder.parent)
        yield new
        to_disk(new)
        _swap(new, folder, previous)
    except (OSError, RuntimeError, SafetensorError) as error:
        with suppress(OSError):
            remove(new)
        cause = _os_error(error)
        if cause is None:
            raise
        raise UserError(_cannot_save(folder, cause, needed_bytes)) from error
    for gone in (_beside(folder, _OLD), _beside(folder, _DAMAGED), _beside(previous or folder, _OLD)):
        with suppress(OSError):
            remove(gone)


def _tidy(folder: Path, previous: Path | None) -> None:
    """Undo a save that was cut short: drop what was being written, put back what was set aside."""
    unfinished = (_beside(folder, _NEW).name, _beside(folder, _DAMAGED).name)
    for path in list(folder.parent.iterdir()):
        if path.name.startswith(unfinished):
            remove(path)
    _put_back(_beside(folder, _OLD), folder)
    if previous is not None:
        if previous.exists() and not folder.exists():
            _put_back(previous, folder)
        _put_back(_beside(previous, _OLD), previous)


def _put_back(aside: Path, folder: Path) -> None:
    """Move what was set aside to its place; where that is taken, it goes."""
    if folder.exists() or not aside.exists():
        remove(aside)
    else:
        remove(folder)  # a link that leads nowhere
        aside.rename(folder)


def _swap(new: Path, folder: Path, previous: Path | None) -> None:
    """Put the new folder into its place; if a rename fails, those before it are undone."""
    moves = [(new, folder)]
    if os.path.lexists(folder):
        away = _beside(folder, _OLD) if previous is None else previous
        if previous is not None:
            try:
                read_meta(folder)
            except DamagedError:  # the one before may be all that is left: it must not make way for a ruin
                away = _beside(folder, _DAMAGED)
        moves.insert(0, (folder, away))
        if away == previous and os.path.lexists(previous):
            moves.insert(0, (previous, _beside(previous, _OLD)))
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            source.rename(target)
            done.append((source, target))
    except OSError:
        for source, target in reversed(done):
            target.rename(source)
        raise
    to_disk(folder.parent)


def _beside(folder: Path, ending: str) -> Path:
    """A folder of which nobody else knows, for a while."""
    return folder.with_name(f".{folder.name}.{ending}")


def _sum_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of values, however they are laid out in a file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's complaint behind what torch or safetensors raised; None for another fault."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        number = re.search(r"\(os error (\d+)\)", str(error)) if isinstance(error, SafetensorError) else None
        if number is not None:
            return OSError(int(number[1]), os.strerror(int(number[1])))
        error = error.__cause__ or error.__context__
    return None


def _cannot_save(folder: Path, cause: OSError, needed_bytes: int) -> str:
    existing = next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    kept = "; the previous checkpoint is untouched" if current(folder) else ""
    return (
        f"cannot save the checkpoint {folder}: {cause.strerror or cause} "
        f"(it needs {needed_bytes / 1e6:.1f} MB, {free / 1e6:.1f} MB are free){kept}; "
        "make room or allow writing there, then run the same command again"
    )


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
    damage: list[DamagedError] = []
    last, previous = (checkpoint_folder(run_dir, tag) for tag in (LAST, PREVIOUS))
    for folder in (last, previous):
        if current(folder) is None:
            continue
        error = _damage(folder)
        if error is None and not damage:
            return Newest(folder.name, None)
        if error is None:
            warning = (
                f"{damage[0].file} {damage[0].what}: the checkpoint of {_step(damage[0].file.parent)} is damaged, "
                f"taking the one before it, of {_step(previous)} ({previous})"
            )
            return Newest(folder.name, warning)
        damage.append(error)
    if len(damage) == 2:
        others = [tag for tag in (BEST, *kept_tags(run_dir)) if checkpoint_folder(run_dir, tag).is_dir()]
        rename = f"rename {run_dir}/checkpoints/{others[-1]} to last" if others else ""
        raise UserError(
            f"both checkpoints that {run_dir} could go on from are damaged: {damage[0].file} {damage[0].what}, "
            f"{damage[1].file} {damage[1].what}; restore one of them from a copy, or "
            f"{rename or 'start anew in another folder (--out)'}"
        )
    if damage:
        raise damage[0]
    return None


def identity(path: Path) -> tuple[int, int] | None:
    """Tells a file or folder from another one that took its name; None where there is none at this instant."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _damage(folder: Path) -> DamagedError | None:
    """What is wrong with a checkpoint, which another process may be replacing."""
    for _ in range(_SWAPS):
        before = identity(current(folder) or folder)
        try:
            read_meta(current(folder) or folder)
        except DamagedError as error:
            damage = error
        else:
            return None
        if before is not None and identity(current(folder) or folder) == before:
            break
    return damage


def _step(folder: Path) -> str:
    """A checkpoint's step in words."""
    try:
        return f"step {stated_meta(current(folder) or folder)['step']}"
    except (DamagedError, KeyError):
        return "an unknown step"
