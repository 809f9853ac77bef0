"""Reading weights that somebody else wrote, without running anything that is in the file.

Pickles go through torch's restricted unpickler: tensors, plain containers and `argparse.Namespace` (the
authors' files hold one) are admitted, everything else is refused before it is called.
"""

from __future__ import annotations

import argparse
import errno
import logging
import re
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from illama.checkpoint.format import Meta, is_of_a_run, read_safetensors
from illama.errors import UserError

PICKLE_ENDINGS = (".pth", ".pt", ".bin")
WEIGHTS_ENDINGS = (".safetensors", *PICKLE_ENDINGS)
# Where the weights stand in a dict that holds more, in the order of preference.
STATE_KEYS = ("model", "state_dict", "model_state_dict", "model_ema", "state_dict_ema", "net", "module")
WRAPPERS = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name
LONGEST_NAME = 200
# A tensor that repeats a few values may look larger than its file. Up to this many bytes that is allowed: the largest
# of a network that illama knows has some hundred megabytes.
MOST_REPEATED_BYTES = 2**30
_log = logging.getLogger("illama")


def read_weights(path: Path | str) -> tuple[dict[str, Tensor], Meta | None]:
    """Read a weights file of any origin: .safetensors, or a PyTorch pickle (.pth, .pt, .bin).

    Args:
        path: The file. A pickle may be a plain state_dict, or a dict with it under one of `STATE_KEYS` (the
            first that is present; which one is logged); zip and legacy formats are read.

    Returns:
        Parameter name -> tensor on the CPU, and the description; None for files that illama did not write.

    Raises:
        UserError: No such file, not a checkpoint, damaged, a pickle with anything but data in it, or tensors that
            are no plain arrays.
    """
    path = Path(path)
    if not path.is_file() and not is_of_a_run(path):
        raise UserError(f"there is no weights file {path}")
    if path.suffix not in WEIGHTS_ENDINGS:
        raise UserError(f"{path} does not end in {', '.join(WEIGHTS_ENDINGS)}: not a weights file")
    state: dict[str, Tensor]
    meta: Meta | None
    if path.suffix == ".safetensors":
        (state, meta), most_bytes = read_safetensors(path), sys.maxsize  # it compares them with the file itself
    else:
        state, meta = _read_pickle(path), None
        most_bytes = max(path.stat().st_size, MOST_REPEATED_BYTES)
    for name, tensor in state.items():
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise UserError(f"{path}: {name[:40]!a} is no parameter's name; fetch or copy the file again")
        oddity = _oddity(tensor, most_bytes)
        if oddity is not None:
            raise UserError(f"{path}: {name} is {oddity}, but weights are plain arrays; save them dense, on the CPU")
    # Plain tensors: a pickle can give a parameter attributes that hide its methods.
    return {name: Tensor.detach(tensor) for name, tensor in state.items()}, meta


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The state_dict in a PyTorch pickle; of what is in it nothing runs."""
    if path.stat().st_size == 0:
        raise UserError(f"{path} is not a checkpoint: the file is empty; fetch or copy it again")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to its own callers; what fails is reported below
            content = torch.load(path, map_location="cpu", weights_only=True)
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
    while prefix := next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _short(error: Exception) -> str:
    """The one informative line of a message that torch surrounds with advice."""
    text = str(error)
    telling = re.search(
        r"files saved in the legacy \.tar format|TorchScript archives|failed finding central directory"
        r"|Unsupported operand \d+|unexpected EOF, expected \d+ more bytes",
        text,
    )
    if telling:
        return telling[0]
    line = text.splitlines()[0][:100] if text and len(text) < 200 else ""
    return line if line and line.isprintable() else type(error).__name__


def _oddity(tensor: Tensor, most_bytes: int) -> str | None:
    """Why a tensor cannot be taken as an array of numbers; None if it can."""
    if tensor.layout != torch.strided or tensor.is_nested:
        return "sparse or nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_meta:
        return "without values (of the meta device)"
    if tensor.nbytes > most_bytes:
        return "larger than the file"
    return None


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items())
    )
