"""What an answer depends on, in short: images with their labels, a network; and what a run was begun with.

Folders do not count, neither do kinds of files: the same pictures have the same name on another machine.

```
RUN/origin.json    the data's path, and identities of the training and the evaluation images; the start weights
RUN/held_out.csv   the images that data.val_fraction set aside, by name and content
```

Both are written when the run begins. The path may change: the data is what it is by classes, counts and content.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from illama.checkpoint.folder import HELD_OUT_FILE, ORIGIN_FILE
from illama.console.text import read_json, shown
from illama.data.decode.images import BrokenImage
from illama.data.source import Source, SubsetSource
from illama.errors import UserError
from illama.system.files import read_given, utf8

if TYPE_CHECKING:
    from torch import nn

    from illama.data.eval_transform import EvalTransform
    from illama.models import ILlama
    from illama.recipes import Recipe

SAMPLED = 16  # images whose content counts, evenly spaced
_FORMAT = 1
_RUN_FILES = ("recipe.yaml", "environment.json")  # of the runs of every version
_HEAD = 1 << 16  # bytes of an image that its mark is made of, with its size
_HEADER = ("name", "bytes", "blake2b of the first 64 KiB")
T = TypeVar("T")
Mark = tuple[str, int, str]  # name, size in bytes, digest of the first bytes


def data_id(source: Source) -> str:
    """SHA-256, hexadecimal, of the class names, of label and file name of every image, and of some images' content.

    Folders do not count: the same data set has the same name on another machine. Of the content `SAMPLED` images stand
    for all, since reading all would take as long as what the name is to save: another version of the images under the
    same names (a corruption, another size) has another name, an exchange of single images need not.
    """
    classes = json.dumps(list(source.classes)).encode()
    return _sha256(chain([classes, _labels(source)], _names(source), _contents(source)))


@dataclass(frozen=True)
class DataIdentity:
    """What `data_id` stands for, in parts that can be told apart.

    Attributes:
        images: How many.
        labels: SHA-256 of the class of each image.
        names: SHA-256 of the file name of each image.
        content: SHA-256 of the content of `SAMPLED` of them.
    """

    images: int
    labels: str
    names: str
    content: str

    @classmethod
    def of(cls, source: Source) -> DataIdentity:
        """That of a source; reads `SAMPLED` images."""
        return cls(len(source), _sha256([_labels(source)]), _sha256(_names(source)), content_id(source))

    def difference(self, now: DataIdentity) -> str | None:
        """What is different in other images, in a few words; None where nothing is."""
        if self.images != now.images:
            return f"{self.images:,} images were there, {now.images:,} are"
        if self.names != now.names:
            return "the files have other names, or another order"
        if self.labels != now.labels:
            return "some images are of another class than they were"
        return None if self.content == now.content else "the pictures have another content under the same names"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the fields."""
        return asdict(self)


def names_id(source: Source) -> str:
    """SHA-256, hexadecimal, of label and file name of every image."""
    return _sha256(chain([_labels(source)], _names(source)))


def content_id(source: Source) -> str:
    """SHA-256, hexadecimal, of the content of `SAMPLED` images."""
    return _sha256(_contents(source))


def image_name(source: Source, i: int) -> str:
    """What an image is called wherever it lies."""
    return os.path.basename(source.location(i))


def _sha256(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def _labels(source: Source) -> bytes:
    return source.labels.astype("<i8").tobytes()


def _names(source: Source) -> Iterator[bytes]:
    """What each image is called wherever it lies."""
    return (image_name(source, i).encode(errors="surrogateescape") + b"\0" for i in range(len(source)))


def _contents(source: Source) -> Iterator[bytes]:
    """SHA-256 of `SAMPLED` images, evenly spaced, as they are stored, or of their pixels where a source keeps no files;
    b"" of a broken one."""
    count = min(SAMPLED, len(source))
    for i in (part * len(source) // count for part in range(count)):
        try:
            stored = source.encoded(i)
            yield hashlib.sha256(source.read(i).tobytes() if stored is None else stored).digest()
        except BrokenImage:
            yield b""


def weights_id(model: nn.Module) -> str:
    """`tensors_id` of a network; what is no weight does not count: the configuration, and the softness of a mask."""
    return tensors_id(model.state_dict())


def tensors_id(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, hexadecimal, of name, dtype, shape and bytes of every tensor, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        digest.update(plain.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def network_id(model: ILlama, transform: EvalTransform) -> str:
    """SHA-256, hexadecimal, of all that a network's answers depend on besides the images."""
    parts = {
        "weights": weights_id(model),
        "config": model.config.to_dict(),
        "transform": transform.to_dict(),
        "softness": float(model.softness),
    }
    return _plain_id(parts)


def short_name(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for plain values in a file's name."""
    return _plain_id(identity)[:12]


def _plain_id(values: Any) -> str:
    """SHA-256, hexadecimal, of plain values."""
    return _sha256([json.dumps(values, sort_keys=True).encode()])


@dataclass(frozen=True)
class Start:
    """Weights that a run started from.

    Attributes:
        given: What was typed: a path or a name.
        name: What they are called: published weights, a run's folder, or the file.
        tensors: `tensors_id` of what was read.
    """

    given: str
    name: str
    tensors: str


@dataclass(frozen=True)
class Origin:
    """What a run was begun with.

    Attributes:
        train: Its training images.
        eval: Its evaluation images.
        held_out: Marks of the images that `data.val_fraction` set aside; () without.
        start: Weights that it started from; None for a network that was newly initialised.
        run: SHA-256 of all that decides the run's numbers, taken once, when it began: its checkpoints bear it. None for
            a run of a version without.
    """

    train: DataIdentity
    eval: DataIdentity
    held_out: tuple[Mark, ...] = ()
    start: Start | None = None
    run: str | None = None

    @classmethod
    def of(cls, recipe: Recipe, train: Source, evaluated: Source, start: Start | None) -> Origin:
        """That of a run which is about to begin."""
        held_out = tuple(marks(evaluated)) if recipe.data.val_fraction > 0 else ()
        identities = DataIdentity.of(train), DataIdentity.of(evaluated)
        decides = [
            recipe.with_data_path(None).to_dict(),
            *(train.classes, *(one.to_dict() for one in identities)),
            None if start is None else start.tensors,
        ]
        return cls(*identities, held_out, start, _plain_id(decides))

    def files(self) -> dict[str, bytes]:
        """What stands in the run's folder, by name."""
        plain = {
            "format": _FORMAT,
            "train": self.train.to_dict(),
            "eval": self.eval.to_dict(),
            "start": None if self.start is None else asdict(self.start),
            "run": self.run,
        }
        files = {ORIGIN_FILE: utf8(json.dumps(plain, indent=1, ensure_ascii=False) + "\n")}
        if self.held_out:
            text = io.StringIO()
            csv.writer(text, lineterminator="\n").writerows([_HEADER, *self.held_out])
            files[HELD_OUT_FILE] = text.getvalue().encode(errors="surrogateescape")
        return files

    @classmethod
    def read(cls, run_dir: Path) -> Origin | None:
        """That of a run; None for one that was begun by a version which kept none.

        Raises:
            UserError: A file is damaged.
        """
        file = run_dir / ORIGIN_FILE
        if not file.is_file():
            return None
        try:
            plain: dict[str, Any] = read_json(file)
            start = None if plain["start"] is None else _of_its_types(Start(**plain["start"]))
            held_out = tuple(_read_marks(run_dir / HELD_OUT_FILE))
            train, evaluated = (_of_its_types(DataIdentity(**plain[split])) for split in ("train", "eval"))
            run = plain.get("run")
            return cls(train, evaluated, held_out, start, None if run is None else str(run))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{file} or {HELD_OUT_FILE} beside it is damaged ({error}); take both from a copy of the run, or "
                "remove both to go on without a comparison of the data"
            ) from None


def _of_its_types(values: T) -> T:
    """The same; text in the place of a number is damage.

    Raises:
        ValueError: A field is of another type than is stated.
    """
    for field in fields(values):  # type: ignore[arg-type]
        value = getattr(values, field.name)
        if type(value).__name__ != field.type:
            raise ValueError(f"{field.name}: allowed: {field.type}, given {shown(str(value), 40)}")
    return values


def run_of(weights: Path) -> Path | None:
    """The folder of the run that a weights file lies in; None where it lies in none."""
    folders = weights.resolve().parents[:4]
    return next((folder for folder in folders if all((folder / name).is_file() for name in _RUN_FILES)), None)


def marks(source: Source) -> list[Mark]:
    """Name, size and digest of the first bytes of each image; what cannot be read has size -1."""
    return [_mark(source, i) for i in range(len(source))]


def held_out_again(source: Source, held_out: Sequence[Mark]) -> SubsetSource | None:
    """Those images of a source that a run held out, by name and content; None where there is none of them.

    Args:
        source: Where they may be, among others.
        held_out: Their marks.
    """
    wanted, names = set(held_out), {name for name, _, _ in held_out}
    positions = [i for i in range(len(source)) if image_name(source, i) in names and _mark(source, i) in wanted]
    if not positions:
        return None
    why = f"the {len(positions)} of them that the run held out ({len(held_out)} in all), found by name and content"
    return SubsetSource(source, np.array(positions, dtype=np.int64), why)


def _mark(source: Source, i: int) -> Mark:
    try:
        size, head = source.head(i, _HEAD)
    except BrokenImage:
        return image_name(source, i), -1, ""
    return image_name(source, i), size, hashlib.blake2b(head, digest_size=16).hexdigest()


def _read_marks(file: Path) -> list[Mark]:
    if not file.is_file():
        return []
    text = read_given(file).decode(errors="surrogateescape")
    try:
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise ValueError(error) from None
    return [(name, int(size), digest) for name, size, digest in rows[1:]]
