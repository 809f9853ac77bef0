"""WebDataset shards (tar files of image + class number), read by position instead of as a stream.

Members are told apart as webdataset does it: what precedes the first dot of the file name is, with the folders before
it, the sample's key, and the rest is the ending of one of its files. Because places are known, the files of a sample
need not follow each other.
"""

from __future__ import annotations

import io
import math
import os
import re
import tarfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from illama.console.text import parse_json, read_json, shown
from illama.data.decode.images import LARGEST_FILE, BrokenImage, read_image
from illama.data.layout import Layout, needed_folder, needed_path
from illama.data.source import MOST_CLASSES, Source
from illama.data.sources.formats import FileKind, kind_of_file, pointer_hint
from illama.data.sources.splits import split_in_name, whole_or_splits
from illama.data.sources.walk import NO_PICTURES, SPECIAL, Listing, PassedOver, is_hidden
from illama.errors import UserError
from illama.system.files import read_given_text, why

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

OPEN_FILES = 256  # of one process; systems allow 1024 and more
NO_IMAGE, NO_KEY = "samples without a picture", "files whose names have no key and ending"
LINKED = "pictures that are links or sparse in the tar file; write it with their content (tar --hard-dereference -h)"
SECOND = "further pictures of a sample (.jpg before .png)"
MOST_SHARDS = 1_000_000
_RANGE = re.compile(r"\{(\d{1,18})\.\.(\d{1,18})\}")
_LONGEST_LABEL = 1 << 20  # bytes
_LONGEST_HEADER = 16 << 20  # bytes; names and attributes of one member
_MOST_LOOKED_AT = 64  # MiB after the last member
_MOST_PADDING = 1 << 20  # bytes of zeros at the end of a tar file; tar writes up to 10 kB


@dataclass(frozen=True)
class _Member:
    shard: int
    start: int
    size: int
    name: str


class _OpenFiles:
    """Files that stay open between reads.

    A read carries its own position and no lock is held, so threads share this, and so do processes that were forked.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._open: dict[int, _File] = {}

    def __getstate__(self) -> dict[str, Any]:  # spawned processes open anew
        return {"_paths": self._paths, "_open": {}}

    def read(self, number: int, start: int, size: int) -> bytes:
        """Bytes of one file, fewer where it ends."""
        file = self._open.get(number)
        if file is None:
            file = self._open[number] = _File(self._paths[number])
            for other in list(self._open)[:-OPEN_FILES]:
                self._open.pop(other, None)  # it is closed when its last reader has finished
        return file.read(start, size)


class _File:
    """An open file; closed with the last reference."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - it outlives this call
        weakref.finalize(self, self._file.close)

    def read(self, start: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._file.fileno(), size, start)
        with open(self._file.name, "rb") as file:
            file.seek(start)
            return file.read(size)


@dataclass(eq=False, repr=False, kw_only=True)
class ShardSource(Source):
    """Images at known places in tar files."""

    shards: Sequence[Path]
    members: Sequence[_Member]

    def __post_init__(self) -> None:
        self._files = _OpenFiles(self.shards)

    def read(self, i: int) -> Image.Image:
        return read_image(self.encoded(i), self.in_chans, self.location(i), max_pixels=self.max_pixels)

    def encoded(self, i: int) -> bytes:
        member = self.members[i]
        if member.size > LARGEST_FILE:
            why = f"{member.size:,} bytes are more than a picture's file may have ({LARGEST_FILE:,})"
            raise BrokenImage(self.location(i), why)
        try:
            return self._files.read(member.shard, member.start, member.size)
        except OSError as error:
            raise BrokenImage(self.location(i), error.strerror or str(error)) from None

    def location(self, i: int) -> str:
        return f"{self.shards[self.members[i].shard]}:{self.members[i].name}"


def look_at_shards(data: DataConfig, listing: Listing | None) -> ShardLayout:
    """The layout of a folder of shards, or of one shard.

    The shards of a split are those that `_info.json` lists (timm's layout), else SPLIT-0000.tar, SPLIT/*.tar, or a
    pattern given as the split, train-{000..127}.tar.

    Raises:
        UserError: There is no such folder, or `_info.json` cannot be understood.
    """
    path = needed_path(data)
    if path.is_file():
        return ShardLayout(data, path.parent, {split_in_name(path.name): [path]})
    listing = needed_folder(data, listing, "of shards (train-0000.tar, ...)")
    listed, stated = _listed(path)
    if not listed:
        for file in listing.holding(".tar"):
            *folders, name = file.split("/")
            if len(folders) < 2:
                listed.setdefault(folders[0] if folders else split_in_name(name), []).append(path / file)
    return ShardLayout(data, path, listed, stated)


class ShardLayout(Layout):
    """Shards by split."""

    def __init__(
        self,
        data: DataConfig,
        path: Path,
        shards: dict[str, list[Path]],
        stated: Mapping[Path, int] = MappingProxyType({}),
    ) -> None:
        self._path = path
        self._shards = whole_or_splits(shards, data.train_split, data.eval_split)
        self._stated = stated
        self._counted: set[str] = set()  # splits whose members are among what is passed over
        super().__init__(data, "shards", shown(path), [split for split in self._shards if split])
        self.how_to_split = "write shards of each split (train-0000.tar, val-0000.tar)"
        for files in self._shards.values():
            self.note_missing(files)

    def _choose(self, wanted: str, *, carved: bool) -> str | None:
        return wanted if ".tar" in wanted else super()._choose(wanted, carved=carved)

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> ShardSource:
        """One split: a sample is an image and a number, key.jpg and key.cls (or key.json with "label").

        Classes are named by `classes.txt` (a name a line) where it exists, else by their numbers. Positions are found
        by reading the tar headers once.

        Raises:
            UserError: No such shard, a compressed shard, or a sample without a class or with a file twice.
        """
        shards = self._files(split or "")
        members: list[_Member] = []
        labels: list[int] = []
        passed_over = PassedOver() if split in self._counted else self.passed_over
        self._counted.add(split or "")
        for number, shard in enumerate(shards):
            before = len(members)
            for member, label in _samples(shard, number, passed_over):
                members.append(member)
                labels.append(label)
            if self._stated.get(shard, len(members) - before) != len(members) - before:
                raise UserError(
                    f"shard {shown(shard)} holds {len(members) - before} samples, and _info.json says "
                    f"{self._stated[shard]}; fetch it again, or mend _info.json"
                )
        what = self.name_of(split)
        if not members:
            raise UserError(f"{what}: the shards hold no samples (key.jpg with key.cls)")
        bad = next((label for label in (max(labels), min(labels)) if not 0 <= label < MOST_CLASSES), None)
        if bad is not None:
            raise UserError(f"{what}: {bad} is no class number; allowed: 0 to {MOST_CLASSES - 1}")
        return ShardSource(
            shards=shards,
            members=members,
            classes=tuple(self._names(max(labels) + 1)),
            labels=np.array(labels, dtype=np.int64),
            in_chans=in_chans,
            description=f"{len(shards)} shards in {what}",
        )

    def _files(self, split: str) -> list[Path]:
        if ".tar" in split:
            shards = [self._path / name for name in _expand(split.partition("|")[0])]  # timm lets |COUNT follow
        else:
            shards = self._shards[split]
        missing = [shard for shard in shards if not shard.is_file()]
        if missing:
            count = f"{len(missing)} of {len(shards)} are missing"
            raise UserError(f"shard {shown(missing[0])} does not exist ({count})")
        return shards

    def _names(self, needed: int) -> list[str]:
        """Class names: a line each, none left out."""
        file = self._path / "classes.txt"
        if not file.is_file():
            return [str(number) for number in range(needed)]
        try:
            lines = [line.strip() for line in read_given_text(file).rstrip().split("\n")]
        except (OSError, ValueError) as error:
            raise UserError(f"{shown(file)} cannot be read: {shown(why(error))}") from None
        if "" in lines:
            raise UserError(f"{shown(file)}: line {lines.index('') + 1} is empty; each line names one class")
        return lines


def _listed(path: Path) -> tuple[dict[str, list[Path]], dict[Path, int]]:
    """Shards by split as timm's _info.json names them, and how many samples it says of each; empty without it."""
    for name in ("_info.json", "info.json"):
        if not (path / name).is_file():
            continue
        try:
            splits: dict[str, Any] = read_json(path / name).get("splits", {})
            shards = {key: [path / str(file) for file in value["filenames"]] for key, value in splits.items()}
            lengths = {key: [int(n) for n in value.get("shard_lengths") or ()] for key, value in splits.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{shown(path / name)} does not list shards as timm writes it; mend or remove it") from None
        stated = [key for key, files in shards.items() if len(lengths[key]) == len(files)]
        return shards, {file: n for key in stated for file, n in zip(shards[key], lengths[key], strict=True)}
    return {}, {}


def _expand(pattern: str) -> list[str]:
    """train-{000..002}.tar as the three names it stands for.

    Raises:
        UserError: It stands for too many.
    """
    count = math.prod(max(0, int(last) - int(first) + 1) for first, last in _RANGE.findall(pattern))
    if count > MOST_SHARDS:
        raise UserError(f"{shown(pattern)} stands for {count:,} shards, more than {MOST_SHARDS:,}; give fewer")
    names = [pattern]
    while (bounds := _RANGE.search(names[0])) is not None:
        numbers = [f"{n:0{len(bounds[1])}}" for n in range(int(bounds[1]), int(bounds[2]) + 1)]
        names = [_RANGE.sub(number, name, count=1) for name in names for number in numbers]
        if not names:
            raise UserError(f"{shown(pattern)} stands for no shard: the first number is above the last")
    return names


@dataclass
class _Sample:
    """The pictures and the class numbers of one key, by their endings."""

    pictures: dict[str, _Member] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


# Where a sample has several pictures, this decides: a mask is stored without loss.
ORDER = (".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".heic", ".jp2", ".png", ".tif", ".tiff", ".bmp", ".gif")
# webdataset's own: what a key is, and names that are no samples'.
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")
_META = re.compile(r"__[^/]*__($|/)")


class _Headers(io.FileIO):
    """A tar file of which headers are read, and labels: a header that states gigabytes of its own is none."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes" if size else "a header without end")
        return super().read(size) or b""


def _samples(shard: Path, number: int, passed_over: PassedOver) -> Iterator[tuple[_Member, int]]:
    """Picture and class of each sample of a shard in the order of their first files; the rest is counted.

    Raises:
        UserError: It is no plain tar file, or a sample has a file twice, several pictures of a kind, a class that is no
            number, or a picture without a class.
    """
    samples: dict[str, _Sample] = {}
    try:
        # "r:" is plain tar: compressed files have no places to jump to
        with _Headers(shard, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                _sort_in(entry, tar, samples, shard, number, passed_over)
            end = tar.offset  # tarfile stops at what is no header, and says nothing
        _demand_end(shard, end)
    except UserError:
        raise
    except Exception as error:  # on damaged data tarfile raises nearly every type there is
        raise UserError(
            f"shard {shown(shard)} cannot be read as a plain tar file: {shown(error)}{pointer_hint(shard)}"
        ) from None
    for key, sample in samples.items():
        where = f"shard {shown(shard)}: sample {shown(key)!r}"
        first, *others = sorted(sample.pictures, key=_rank) or [""]
        if others and _rank(others[0]) == _rank(first):
            raise UserError(
                f"{where} has two pictures, {shown(first)} and {shown(others[0])}; a key ends at the first dot of the "
                "file's name: rename them so that each has its own"
            )
        for other in others:
            passed_over.add(SECOND, f"{shard.name}:{sample.pictures[other].name}")
        if not first:
            passed_over.add(NO_IMAGE, f"{shard.name}:{key}")
        if len(set(sample.labels.values())) > 1:
            said = " and ".join(f"{label} (.{ending})" for ending, label in sample.labels.items())
            raise UserError(f"{where} has the classes {said}; an image needs one")
        if first and not sample.labels:
            raise UserError(f"{where} has no class (key.cls)")
        if first:
            yield sample.pictures[first], next(iter(sample.labels.values()))


def _rank(ending: str) -> tuple[bool, int]:
    """Place of a picture among those of a sample."""
    last = f".{ending.rpartition('.')[2]}"
    return "." in ending, ORDER.index(last) if last in ORDER else len(ORDER)


def _demand_end(shard: Path, end: int) -> None:
    """A tar file is read whole: what follows its last member is its end mark, and nothing else.

    Raises:
        UserError: It is cut off or damaged, or something follows.
    """
    with open(shard, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(end)
        rest = (file.read(1 << 20) for _ in range(_MOST_LOOKED_AT))  # a sparse file is zeros for hours
        filled = any(block.strip(b"\0") for block in rest)
    if filled:
        why = f"after byte {end:,} it does not go on as a tar file: it is damaged, or several were joined by cat"
        remedy = "fetch it again, or join them with tar --concatenate"
    elif size - end < tarfile.BLOCKSIZE:
        why, remedy = "it ends without tar's end mark, so it may be cut off", "fetch or write it again"
    elif size - end > _MOST_PADDING:
        why, remedy = f"its last {size - end:,} bytes are zeros: it was not fetched completely", "fetch it again"
    else:
        return
    raise UserError(f"shard {shown(shard)}: {why}; {remedy}")


def _sort_in(
    entry: tarfile.TarInfo,
    tar: tarfile.TarFile,
    samples: dict[str, _Sample],
    shard: Path,
    number: int,
    passed_over: PassedOver,
) -> None:
    """Put one member of a tar file to its sample, or among what is passed over."""
    where = f"{shard.name}:{entry.name}"
    if entry.isdir():
        return
    why = next((why for part in entry.name.split("/") if part != "." and (why := is_hidden(part))), None)
    match = _KEY.match(entry.name)
    if why is None and (not entry.isfile() or entry.issparse()):
        lost = kind_of_file(entry.name) is FileKind.PICTURE
        passed_over.add(LINKED if lost else SPECIAL, where, lost=lost)
        return
    if why is not None or match is None or _META.match(entry.name):
        passed_over.add(why or NO_KEY, where)
        return
    key, ending = match[1], match[2].lower()
    last = f".{ending.rpartition('.')[2]}"
    kind = kind_of_file(f"x{last}")
    if kind is FileKind.PICTURE:
        pictures = samples.setdefault(key, _Sample()).pictures
        if ending in pictures:
            raise UserError(
                f"shard {shown(shard)}: {shown(entry.name)} is there twice; every sample needs a key of its own"
            )
        pictures[ending] = _Member(number, entry.offset_data, entry.size, entry.name)
    elif kind is FileKind.UNREAD:
        passed_over.add_unread(last, where)
    elif last in (".cls", ".json"):
        content = tar.extractfile(entry)
        label = _label(b"" if content is None else content.read(_LONGEST_LABEL), last, where)
        labels = samples.setdefault(key, _Sample()).labels
        if label is not None:
            labels[ending] = label
    else:
        passed_over.add(NO_PICTURES, where)


def _label(content: bytes, ending: str, where: str) -> int | None:
    """The class number that a member holds; None for a JSON without "label"."""
    try:
        text = content.decode()
        value = text if ending == ".cls" else parse_json(text).get("label")
        if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
            raise ValueError
        return None if value is None else int(value)
    except (ValueError, TypeError, AttributeError, RecursionError):
        given = shown(content[:40].decode(errors="backslashreplace"))
        raise UserError(
            f'{shown(where)} holds no class number ({given!r}); expected a whole number, or JSON with "label"'
        ) from None
