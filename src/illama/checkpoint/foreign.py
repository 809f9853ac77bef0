"""Reading weights that somebody else wrote, without running anything that is in the file.

Pickles go through torch's restricted unpickler: tensors, plain containers and `argparse.Namespace` (the
authors' files hold one) are admitted, everything else is refused before it is called.
"""

from __future__ import annotations

import argparse
import errno
import logging
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from illama.checkpoint.io import read_safetensors
from illama.checkpoint.meta import Meta
from illama.errors import UserError

PICKLE_ENDINGS = (".pth", ".pt", ".bin")
# Where the weights stand in a dict that holds more, in the order of preference.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "net", "module")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name
_log = logging.getLogger("illama")


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], Meta | None]:
    """Read a weights file of any origin: .safetensors, or a PyTorch pickle (.pth, .pt, .bin).

    Args:
        path: The file. A pickle may be a plain state_dict, or a dict with it under one of `STATE_KEYS` (the
            first that is present; which one is logged); zip and legacy formats are read.

    Returns:
        Parameter name -> tensor on the CPU, and the description; None for files that illama did not write.

    Raises:
        UserError: No such file, not a checkpoint, damaged, or a pickle with anything but data in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in PICKLE_ENDINGS:
        raise UserError(f"{path} does not end in .safetensors, {', '.join(PICKLE_ENDINGS)}: not a weights file")
    return _state_dict(_unpickle(path), path), None


def _unpickle(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise UserError(f"{path} is not a checkpoint: the file is empty; fetch or copy it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to its own callers; what fails is reported below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can raise anything: KeyError, EOFError, struct.error, ...
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # that is a place outside a file cut short
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        forbidden = re.search(r"GLOBAL `?([\w.]+)", str(error))
        if forbidden:
            raise UserError(
                f"{path} is refused: it wants to run {forbidden[1]}, but weights are data "
                "(tensors, plain containers, argparse.Namespace); ask its author for a .safetensors file"
            ) from None
        raise UserError(
            f"{path} is not a checkpoint or is damaged ({_short(error)}); expected a PyTorch weights file, "
            "fetch or copy it again"
        ) from error


def _short(error: Exception) -> str:
    """The one informative line of a message that torch surrounds with advice."""
    text = str(error)
    for pattern in (
        r"weights_only=True`{0,2} with (files saved in the legacy \.tar format|TorchScript archives)",
        r"(failed finding central directory)",
        r"(Unsupported operand \d+)",
        r"(unexpected EOF, expected \d+ more bytes)",
    ):
        found = re.search(pattern, text)
        if found:
            return found[1]
    return text.splitlines()[0][:100] if text and len(text) < 200 else type(error).__name__


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """The state_dict in an unpickled file."""
    if isinstance(content, Mapping) and not _is_state(content):
        for key in STATE_KEYS:
            if _is_state(content.get(key)):
                beside = [str(name) for name in content if name != key]
                _log.info("%s: weights taken from %r (beside it: %s)", path, key, ", ".join(beside) or "nothing")
                content = content[key]
                break
    if not _is_state(content):
        holds = f"keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, Mapping) else "no dict"
        raise UserError(
            f"{path} holds no state_dict ({holds}); expected parameter names and tensors, plain or under "
            f"one of {', '.join(STATE_KEYS)}"
        )
    state = dict(content)
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )
