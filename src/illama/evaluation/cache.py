"""What a pass over the data leaves for the next one: tensors in a .safetensors file, or results in a journal.

Both begin with a description of all that they depend on.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from typing_extensions import TypedDict

from illama.console.text import parse_json, shown
from illama.errors import UserError
from illama.system.files import is_file, make_folder, open_regular, own_file, replacing, write_file


class About(TypedDict):
    """The description in the header of every file of tensors."""

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)  # type: ignore[misc]

    classes: list[str]
    weights: str
    data: str
    skipped: dict[str, str]


class TensorFile(ABC):
    """A dataclass that is saved as a .safetensors file: its arrays as tensors, its other fields as JSON in the header.

    Attributes:
        KEY: Kind of the file, the name of the description in the header.
        ARRAYS: Names of the fields that are tensors or arrays.
    """

    KEY: ClassVar[str]
    ARRAYS: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def load(cls, path: Path) -> Self:
        """Read back what `save` wrote.

        Raises:
            UserError: No such file, damaged, of another version, or of another kind.
        """

    def save(self, path: Path, **more: Any) -> None:
        """Write a file that appears, or replaces the one of its name, only when it is complete.

        `safetensors.numpy.load_file(path)` reads its arrays by their names without this package.

        Args:
            path: A device or a pipe is written to.
            more: Plain values for the header besides the fields.

        Raises:
            UserError: The disk is full, the folder does not exist, ...
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        tensors = {name: torch.as_tensor(values.pop(name)).contiguous() for name in self.ARRAYS}
        # In ASCII: not every file's name can be written as UTF-8.
        header = {self.KEY: json.dumps(values | more, allow_nan=False)}
        try:
            with replacing(path, given=True) as partial:
                save_file(tensors, partial, metadata=header)
        except (SafetensorError, OSError) as error:
            reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
            raise UserError(f"cannot write {path}: {reason}; give another place") from error

    @classmethod
    def is_one(cls, path: Path) -> bool:
        """Whether a path is a file that says it is of this kind, and does not hold weights, say."""
        if not is_file(path):  # a pipe would be waited for
            return False
        try:
            with safe_open(path, framework="pt") as file:
                return cls.KEY in (file.metadata() or {})
        except (SafetensorError, OSError, RuntimeError):
            return False

    @classmethod
    def load_kept(cls, path: Path) -> Self:
        """Read what an earlier call has left in a workspace.

        Raises:
            UserError: The file is damaged.
        """
        try:
            return cls.load(path)
        except UserError:
            raise UserError(f"{path} is damaged, or of another version of illama; delete it") from None


def checked(about: Mapping[str, Any], kind: type[Any]) -> dict[str, Any] | None:
    """A header's description as fields; None where it is not what that kind of file has."""
    try:
        plain: dict[str, Any] = dict(TypeAdapter(kind).validate_python(about))
    except ValidationError:
        return None
    return plain | {"classes": tuple(plain["classes"])}


def read_tensors(path: Path, key: str, what: str, make_it: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, on the CPU, and the description in its header.

    Args:
        path: The file.
        key: Kind of the file.
        what: What it ought to hold, for messages: "features".
        make_it: What to do where it does not, for messages.

    Raises:
        UserError: No such file, not a safetensors file, cut short, or of another kind.
    """
    if not is_file(path):
        raise UserError(f"there is no file of {what} {path}; {make_it}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError) as error:  # the last one of torch, which maps the file
        reason = shown(str(error).splitlines()[0])  # it may quote the file's bytes
        raise UserError(f"{path} is not a readable safetensors file ({reason}); {make_it}") from None
    if key not in header:
        raise UserError(f"{path} holds no {what}: its header has no description {key!r}; {make_it}")
    try:
        about = parse_json(header[key])
    except ValueError:
        raise UserError(f"{path}: the description in its header is damaged; {make_it}") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: its header does not describe {what}; {make_it}")
    return tensors, about


class Journal:
    """JSON lines that grow as results come: first what all of them depend on, then one for each.

    A crash loses the result that was being written at most.

    Args:
        file: Begun where there is none; in a folder that is made if absent.
        about: Plain values.

    Attributes:
        entries: What earlier calls have left.

    Raises:
        UserError: The file is damaged, about something else, or cannot be read or written.
    """

    def __init__(self, file: Path, about: Mapping[str, Any]) -> None:
        self._file = file
        self.entries: list[dict[str, Any]] = []
        make_workspace(file.parent)
        try:
            content = b""
            if os.path.lexists(file):
                with open(file, "rb", opener=open_regular) as opened:
                    content = opened.read()
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}; delete it to compute all anew") from None
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):  # a line that a crash has cut short
            write_file(file, whole)
        lines = whole.decode(errors="replace").splitlines()
        if not lines:
            self.add(about)
            return
        try:
            first, *self.entries = map(parse_json, lines)
        except ValueError:
            raise self.damaged() from None
        if first != json.loads(json.dumps(about)):
            raise UserError(f"{file} belongs to another network, other images or options; give another folder")

    def add(self, entry: Mapping[str, Any]) -> None:
        """Write one result.

        Raises:
            UserError: It cannot be written.
        """
        try:
            with open(self._file, "a", encoding="utf-8", opener=own_file) as lines:
                lines.write(json.dumps(entry, allow_nan=False) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self._file}: {error.strerror}; give another folder") from None

    def damaged(self) -> UserError:
        """What to say where an entry is none."""
        return UserError(f"{self._file} is damaged; delete it to compute all anew")

    @staticmethod
    def begun(file: Path | None) -> dict[str, Any] | None:
        """What a journal's entries depend on; None where there is none yet, or nothing that can be read."""
        if file is None:
            return None
        try:
            with open(file, encoding="utf-8", opener=open_regular) as lines:
                about = parse_json(lines.readline())
        except (OSError, ValueError):
            return None
        return about if isinstance(about, dict) else None


def make_workspace(folder: Path) -> Path:
    """The folder, made where there is none, for what a second call need not compute again.

    Raises:
        UserError: It cannot be made.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be made: {error.strerror or error}; give another one") from error
    return folder
