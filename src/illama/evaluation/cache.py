"""Results of a pass over the data as .safetensors files: tensors, and a description as JSON in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from illama.console.json_text import parse_json
from illama.console.text import shown
from illama.errors import UserError
from illama.system.files import make_folder, replacing
from illama.system.given_file import is_file


def write_tensors(path: Path, key: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a file that appears only when it is complete.

    Args:
        path: An existing file is replaced; a device or a pipe is written to.
        key: Kind of the file, the name of the description in the header.
        tensors: Contiguous tensors on the CPU.
        about: Plain values.

    Raises:
        UserError: The disk is full, the folder does not exist, ...
    """
    header = {key: json.dumps(about, allow_nan=False)}  # in ASCII: not every file's name can be written as UTF-8
    try:
        with replacing(path, given=True) as partial:
            save_file(dict(tensors), partial, metadata=header)
    except (SafetensorError, OSError) as error:
        reason = str(getattr(error, "strerror", None) or error).splitlines()[0]
        raise UserError(f"cannot write {path}: {reason}; give another place") from error


def read_tensors(path: Path, key: str, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back what `write_tensors` wrote: tensors on the CPU, and the description.

    Args:
        path: The file.
        key: Kind of the file.
        what: What it ought to hold, for messages: "features".

    Raises:
        UserError: No such file, not a safetensors file, cut short, or of another kind.
    """
    if not is_file(path):
        raise UserError(f"there is no file of {what} {path}; make it")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError) as error:  # the last one of torch, which maps the file
        reason = shown(str(error).splitlines()[0])  # it may quote the file's bytes
        raise UserError(f"{path} is not a readable safetensors file ({reason}); make it") from None
    if key not in header:
        raise UserError(f"{path} holds no {what}: its header has no description {key!r}; make it")
    try:
        about = parse_json(header[key])
    except ValueError:
        raise UserError(f"{path}: the description in its header is damaged; make it") from None
    if not isinstance(about, dict):
        raise UserError(f"{path}: its header does not describe {what}; make it")
    return tensors, about


def is_tensor_file(path: Path, key: str) -> bool:
    """Whether a path is a file of that kind."""
    if not is_file(path):  # a pipe would be waited for
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return key in (file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError):
        return False


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
