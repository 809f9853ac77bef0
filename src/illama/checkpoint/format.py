"""The one checkpoint format: safetensors weights with their description, and the training state beside them.

checkpoints/last/
    model.safetensors     weights; `Meta` as JSON in the header
    ema.safetensors       the averaged weights, where averaging is on
    training_state.pt     all else that resuming needs; loads with weights_only=True
    meta.json             step, epoch, SHA-256 of the other files
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from illama.checkpoint.folder import (
    CHECKPOINTS,
    FILE_SUMS,
    LAST,
    PREVIOUS,
    DamagedError,
    Writer,
    checkpoint_folder,
    current,
    identity,
    link_folder,
    read_meta,
    replace_folder,
)
from illama.checkpoint.tensors import compact, map_tensors, tensor_bytes
from illama.console.text import parse_json
from illama.errors import UserError
from illama.models.config import ModelConfig

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Meta:
    """Metadata of a weights file, stored as JSON in the safetensors header.

    Attributes:
        config: The model that the weights belong to.
        classes: Class names in index order, as numbered by the training split; () where they are unknown.
        eval_transform: `EvalTransform.to_dict()` of the evaluation that the weights were made for.
        softness: Softness in force when the weights were saved, 0 (causal) to 1 (bidirectional).
        step: Optimizer steps done.
        epoch: Epochs finished.
        ema: Whether these are the averaged weights rather than the trained ones.
        recipe: The resolved recipe as plain values; None for weights that no recipe made.
        source: Name of the published weights that these are, unchanged ("illama_tiny.in1k"); None for all others.
    """

    # How `from_json` reads it: nothing converted.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"strict": True, "allow_inf_nan": False}

    config: ModelConfig
    classes: tuple[str, ...] = ()
    eval_transform: dict[str, Any] | None = None
    softness: float = 0.0
    step: int = 0
    epoch: int = 0
    ema: bool = False
    recipe: dict[str, Any] | None = None
    source: str | None = None

    def to_json(self) -> str:
        """One line of JSON, with the format's version."""
        plain = asdict(self) | {"config": self.config.to_dict(), "classes": list(self.classes)}
        return json.dumps({"format_version": FORMAT_VERSION} | plain, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, origin: str) -> Meta:
        """Read back what `to_json` wrote.

        Args:
            text: The JSON.
            origin: Where it stands, for messages.

        Raises:
            UserError: Not such a JSON, or one that a newer version of the package wrote.
        """
        from pydantic import TypeAdapter, ValidationError

        try:
            plain = parse_json(text)
        except (ValueError, RecursionError):
            plain = None
        if not isinstance(plain, Mapping) or not isinstance(plain.get("config"), Mapping):
            raise UserError(f"{origin}: the metadata is not a description of illama weights")
        version = plain.get("format_version")
        if version != FORMAT_VERSION:
            raise UserError(f"{origin}: weights format {version!r}, this illama reads {FORMAT_VERSION}; update illama")
        # what a later version adds may be left out
        values = {field.name: plain[field.name] for field in fields(cls) if field.name in plain}
        try:
            text = json.dumps(values, allow_nan=False)
        except (ValueError, RecursionError):  # 1e999 is infinite, too
            raise UserError(f"{origin}: the metadata holds a number that is not finite; save it again") from None
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
            raise UserError(f"{origin}: the metadata does not describe a model: {where}: {what}") from None


MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
STATE_FILE = "training_state.pt"
META_KEY = "illama"  # of the safetensors header
_TRIES, _PAUSE_S = 20, 0.01  # of a read that a save comes between; it takes two renames
LONGEST_REASON = 160  # characters of what a library says of a file


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
    plain = {name: compact(tensor) for name, tensor in state.items()}
    path.touch()
    mode = path.stat().st_mode
    save_file(plain, path, metadata={"format": "pt", META_KEY: meta.to_json()})
    path.chmod(mode)  # safetensors lets nobody but the owner read
    _order_header(path)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Meta | None]:
    """Read a .safetensors file.

    Returns:
        Parameter name -> tensor on the CPU, and the description; None for a file that has none of ours.

    Raises:
        UserError: Not a safetensors file, or cut short.
    """
    for left in reversed(range(_TRIES if is_of_a_run(path) else 1)):
        before, problem = identity(path), None
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError, RuntimeError) as error:  # the last one of torch, which maps the file
            problem = error
        if not left or (before is not None and identity(path) == before):
            break
        time.sleep(_PAUSE_S)  # a training run put another in its place
    if problem is not None:
        reason = str(problem).splitlines()[0][:LONGEST_REASON]
        reason = reason if reason.isprintable() else type(problem).__name__  # it may quote the file's bytes
        raise UserError(f"{path} is not a readable safetensors file ({reason}); fetch or copy it again") from None
    meta = Meta.from_json(header[META_KEY], str(path)) if META_KEY in header else None
    return state, meta


def is_of_a_run(path: Path) -> bool:
    """Whether a weights file lies in a run's checkpoint, which a run that trains replaces as a whole."""
    return path.absolute().parent.parent.name == CHECKPOINTS


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

    The former `last` becomes `previous`, after a comparison with its checksums; a former checkpoint of another tag is
    deleted.

    Args:
        run_dir: The run's folder.
        tag: "last", "best" or a `kept_tag`.
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
    writers: dict[str, Writer] = {
        MODEL_FILE: partial(save_weights, state=model_state, meta=dataclasses.replace(meta, ema=False))
    }
    if ema_state is not None:
        writers[EMA_FILE] = partial(save_weights, state=ema_state, meta=dataclasses.replace(meta, ema=True))
    writers[STATE_FILE] = partial(_save_state, training_state=training_state)
    needed = tensor_bytes([model_state, ema_state or {}, training_state])
    previous = checkpoint_folder(run_dir, PREVIOUS) if tag == LAST else None
    replace_folder(folder, writers, {"step": meta.step, "epoch": meta.epoch}, needed, previous)
    return folder


def keep_checkpoint(run_dir: Path, tag: str, kept: str) -> Path:
    """Give a complete checkpoint a second tag, under which it stays when the first one moves on.

    Its files get a second name (a hard link, which takes no space) where the disk has that, else they are copied.
    Saving never writes into an existing file, so neither changes with the other; damage to the disk hits both.

    Args:
        run_dir: The run's folder.
        tag: The checkpoint's tag, such as "last".
        kept: The second tag (`kept_tag`); a checkpoint that has it is replaced.

    Returns:
        The second folder.

    Raises:
        UserError: There is no checkpoint of that tag, or the second folder cannot be made.
    """
    source, target = current(checkpoint_folder(run_dir, tag)), checkpoint_folder(run_dir, kept)
    if source is None:
        raise UserError(f"{run_dir} has no checkpoint {tag} to keep as {kept}")
    link_folder(source, target)
    return target


def load_checkpoint(run_dir: Path, tag: str, *, verify: bool = True) -> Checkpoint | None:
    """Read `run_dir/checkpoints/tag`, also after a crash in the middle of a save.

    Args:
        run_dir: The run's folder.
        tag: "last", "previous", "best", a `kept_tag`; `newest_checkpoint` says which one to go on from.
        verify: Whether to compare the files with their checksums; not again after `newest_checkpoint`.

    Returns:
        The checkpoint, or None if the run has none of that tag.

    Raises:
        UserError: A file of it is missing or damaged (named).
    """
    folder = current(checkpoint_folder(run_dir, tag))
    if folder is None:
        return None
    sums = read_meta(folder, verify=verify)[FILE_SUMS]
    state, meta = read_safetensors(folder / MODEL_FILE)
    if meta is None:
        raise UserError(f"{folder / MODEL_FILE} does not say which model it belongs to; it was not saved by illama")
    return Checkpoint(
        path=folder,
        model_state=state,
        training_state=_load_state(folder / STATE_FILE),
        meta=meta,
        ema_state=read_safetensors(folder / EMA_FILE)[0] if EMA_FILE in sums else None,
    )


def _order_header(path: Path) -> None:
    """Sort the metadata in place: safetensors' order changes from call to call, and equal weights are equal files."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # the tensors follow it at once; a header that grew would have to stay as it is
            file.seek(8)
            file.write(text.ljust(length))


def _save_state(path: Path, training_state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # a file object: torch then keeps the operating system's error behind its own
        torch.save(map_tensors(dict(training_state), compact), file)
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever the unpickler says: better now than when the run is resumed
        raise TypeError("training_state may hold tensors and plain containers only") from error


def _load_state(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # bytes that are no state can raise anything; only unverified ones get here
        raise DamagedError(path, "is not readable") from None
    return state
