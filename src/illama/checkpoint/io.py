"""The one checkpoint format: safetensors weights with their description, and the training state beside them.

checkpoints/last/
    model.safetensors     weights; `Meta` as JSON in the header
    ema.safetensors       the averaged weights, where averaging is on
    training_state.pt     all else that resuming needs; loads with weights_only=True
    meta.json             step, epoch, SHA-256 of the other files
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from illama.checkpoint.folder import Writer, current, read_meta, replace_folder
from illama.checkpoint.meta import Meta
from illama.errors import UserError

MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
STATE_FILE = "training_state.pt"
META_KEY = "illama"  # of the safetensors header


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read back, every tensor on the CPU."""

    path: Path
    model_state: dict[str, Tensor]
    training_state: dict[str, Any]
    meta: Meta
    ema_state: dict[str, Tensor] | None = None


def save_weights(path: Path, state: Mapping[str, Tensor], meta: Meta) -> None:
    """Write a state_dict and its description to a .safetensors file.

    Args:
        path: The file; an existing one is replaced.
        state: Parameter name -> tensor, any device.
        meta: What travels with them.
    """
    plain = {name: _compact(tensor) for name, tensor in state.items()}
    save_file(plain, path, metadata={"format": "pt", META_KEY: meta.to_json()})


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Meta | None]:
    """Read a .safetensors file.

    Returns:
        Parameter name -> tensor on the CPU, and the description; None for a file that has none of ours.

    Raises:
        UserError: Not a safetensors file, or cut short.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable safetensors file ({reason}); fetch or copy it again") from None
    meta = Meta.from_json(header[META_KEY], str(path)) if META_KEY in header else None
    return state, meta


def save_checkpoint(
    run_dir: Path,
    tag: str,
    *,
    model_state: Mapping[str, Tensor],
    training_state: Mapping[str, Any],
    meta: Meta,
    ema_state: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write `run_dir/checkpoints/tag` so that a crash at any instant leaves the old or the new one readable.

    Args:
        run_dir: The run's folder.
        tag: "last" or "best".
        model_state: The trained weights.
        training_state: What resuming needs beside them: tensors and plain containers only.
        meta: Description of the weights; its `ema` is set here for the averaged ones.
        ema_state: The averaged weights, where averaging is on.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: The disk is full or the folder cannot be written to; the previous checkpoint is untouched.
        TypeError: `training_state` holds something that would not load again.
    """
    folder = checkpoint_folder(run_dir, tag)
    weights = {MODEL_FILE: (model_state, dataclasses.replace(meta, ema=False))}
    if ema_state is not None:
        weights[EMA_FILE] = (ema_state, dataclasses.replace(meta, ema=True))
    writers: dict[str, Writer] = {
        name: lambda path, state=state, about=about: save_weights(path, state, about)  # type: ignore[misc]
        for name, (state, about) in weights.items()
    }
    writers[STATE_FILE] = lambda path: _save_state(path, training_state)
    needed = _size([model_state, ema_state or {}, training_state])
    replace_folder(folder, writers, {"step": meta.step, "epoch": meta.epoch}, needed)
    return folder


def load_checkpoint(run_dir: Path, tag: str) -> Checkpoint | None:
    """Read `run_dir/checkpoints/tag`, also after a crash in the middle of a save.

    Returns:
        The newest complete checkpoint, or None if the run has none of that tag.

    Raises:
        UserError: A file of it is missing or damaged (named).
    """
    folder = current(checkpoint_folder(run_dir, tag))
    if folder is None:
        return None
    sums = read_meta(folder)["sha256"]
    state, meta = read_safetensors(folder / MODEL_FILE)
    if meta is None:
        raise UserError(f"{folder / MODEL_FILE} does not say which model it belongs to; it was not saved by illama")
    return Checkpoint(
        path=folder,
        model_state=state,
        training_state=torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True),
        meta=meta,
        ema_state=read_safetensors(folder / EMA_FILE)[0] if EMA_FILE in sums else None,
    )


def checkpoint_folder(run_dir: Path, tag: str) -> Path:
    """Where the checkpoint with that tag stands in a run's folder."""
    return Path(run_dir) / "checkpoints" / tag


def find_weights(path: Path) -> Path:
    """The weights file that a path stands for; of a run the last checkpoint's.

    The last weights are what the run reports. The best ones are chosen by the evaluation split, so their accuracy on
    it flatters; RUN/checkpoints/best names them.

    Raises:
        UserError: Nothing there, or a checkpoint that differs from its checksums.
    """
    if path.is_file():
        return path
    if not path.exists() and current(path) is None:
        raise UserError(f"there is no run, checkpoint or weights file {path}")
    for candidate in (checkpoint_folder(path, "last"), path):
        folder = current(candidate)
        if folder is not None and (candidate != path or (folder / MODEL_FILE).is_file()):
            read_meta(folder)
            return folder / MODEL_FILE
    raise UserError(f"{path} holds neither a run (checkpoints/last) nor a checkpoint ({MODEL_FILE})")


def _save_state(path: Path, training_state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # a file object: torch then keeps the operating system's error behind its own
        torch.save(dict(training_state), file)
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler says: better now than when the run is resumed
        raise TypeError("training_state may hold tensors and plain containers only") from error


def _compact(tensor: Tensor) -> Tensor:
    """The tensor alone in its memory: views into packed weights would share it, which safetensors refuses."""
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone()


def _size(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list | tuple) else 0
