"""WebDataset shards (tar files of image + class number), read by position instead of as a stream."""

from __future__ import annotations

import json
import os
import re
import tarfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from illama.data.folder import IMAGE_ENDINGS
from illama.data.images import BrokenImage, read_image
from illama.data.source import Source, number_classes
from illama.data.splits import choose_split, split_in_name
from illama.errors import UserError

OPEN_FILES = 256  # of one process; systems allow 1024 and more


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


class ShardSource(Source):
    """Images at known places in tar files."""

    def __init__(
        self,
        shards: list[Path],
        members: list[_Member],
        labels: np.ndarray,
        classes: tuple[str, ...],
        in_chans: int,
        description: str,
    ) -> None:
        self._shards = shards
        self._members = members
        self._files = _OpenFiles(shards)
        self.in_chans = in_chans
        self.labels = labels
        self.classes = classes
        self.description = description

    def read(self, i: int) -> Image.Image:
        return read_image(self.encoded(i), self.in_chans, self.location(i))

    def encoded(self, i: int) -> bytes:
        member = self._members[i]
        try:
            return self._files.read(member.shard, member.start, member.size)
        except OSError as error:
            raise BrokenImage(self.location(i), error.strerror or str(error)) from None

    def location(self, i: int) -> str:
        return f"{self._shards[self._members[i].shard]}:{self._members[i].name}"


def open_shards(path: Path, split: str, in_chans: int = 3, classes: Sequence[str] | None = None) -> Source:
    """Open one split of a folder of shards.

    A sample is an image and a number, key.jpg and key.cls (or key.json with "label"). The shards of a split are
    those that `_info.json` lists (timm's layout), else SPLIT-0000.tar, SPLIT/*.tar, or a pattern given as the
    split, train-{000..127}.tar. Classes are named by `classes.txt` (a name a line) where it exists, else by their
    numbers. Positions are found by reading the tar headers once.

    Raises:
        UserError: No such split or shard, a compressed shard, or a sample without a class.
    """
    shards = _shards(path, split)
    members: list[_Member] = []
    labels: list[int] = []
    for number, shard in enumerate(shards):
        for member, label in _index(shard, number):
            members.append(member)
            labels.append(label)
    if not members:
        raise UserError(f"{path}, split {split}: the shards hold no samples (key.jpg with key.cls)")
    names_file = path / "classes.txt"
    if names_file.is_file():
        found = names_file.read_text(encoding="utf-8").split("\n")
        found = [name.strip() for name in found if name.strip()]
    else:
        found = [str(c) for c in range(max(labels) + 1)]
    names, numbers = number_classes(found, np.array(labels), classes, f"{path}, split {split}")
    description = f"{len(shards)} shards in {path}, split {split}: {len(members)} images, {len(names)} classes"
    return ShardSource(shards, members, numbers, names, in_chans, description)


def _shards(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        raise UserError(f"{path} is not a folder of shards (train-0000.tar, ...)")
    if ".tar" in split:
        shards = [path / name for name in _expand(split.partition("|")[0])]  # timm lets |COUNT follow
    else:
        listed = _listed(path)
        if not listed:
            for shard in sorted([*path.glob("*.tar"), *path.glob("*/*.tar")]):
                inside = shard.parent.name if shard.parent != path else split_in_name(shard.name)
                listed.setdefault(inside, []).append(shard)
        shards = listed[choose_split(split, sorted(listed), str(path))]
    missing = [shard for shard in shards if not shard.is_file()]
    if missing:
        raise UserError(f"shard {missing[0]} does not exist ({len(missing)} of {len(shards)} are missing)")
    return shards


def _listed(path: Path) -> dict[str, list[Path]]:
    """Shards by split as timm's _info.json names them; empty without that file."""
    for name in ("_info.json", "info.json"):
        if (path / name).is_file():
            splits: dict[str, Any] = json.loads((path / name).read_text(encoding="utf-8")).get("splits", {})
            return {key: [path / file for file in value["filenames"]] for key, value in splits.items()}
    return {}


def _expand(pattern: str) -> list[str]:
    """train-{000..002}.tar as the three names it stands for."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if found is None:
        return [pattern]
    width = len(found[1])
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [
        name for n in numbers for name in _expand(f"{pattern[: found.start()]}{n:0{width}}{pattern[found.end() :]}")
    ]


def _index(shard: Path, number: int) -> Iterator[tuple[_Member, int]]:
    """Each image of a shard with its class."""
    key, image, label = None, None, None
    try:
        with tarfile.open(shard, "r:") as tar:  # "r:" is plain tar: compressed files have no places to jump to
            for entry in tar:
                if not entry.isfile():
                    continue
                folder, _, base = entry.name.rpartition("/")
                stem, _, ending = base.partition(".")
                if (folder, stem) != key:
                    yield from _sample(shard, key, image, label)
                    key, image, label = (folder, stem), None, None
                ending = "." + ending.lower()
                if ending in IMAGE_ENDINGS:
                    image = _Member(number, entry.offset_data, entry.size, entry.name)
                elif ending in (".cls", ".json"):
                    content = tar.extractfile(entry)
                    text = content.read().decode() if content is not None else ""
                    value = text if ending == ".cls" else json.loads(text).get("label")
                    label = label if value is None else int(value)
            yield from _sample(shard, key, image, label)
    except (tarfile.TarError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"shard {shard} cannot be read as a plain tar file with class numbers: {error}") from None


def _sample(
    shard: Path, key: tuple[str, str] | None, image: _Member | None, label: int | None
) -> Iterator[tuple[_Member, int]]:
    if image is None:
        return
    if label is None:
        raise UserError(f"shard {shard}: sample {key[1] if key else image.name!r} has no class (key.cls)")
    yield image, label
