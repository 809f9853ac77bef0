"""Short names for what an answer depends on: images with their labels, and a network. Equal names, equal content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from illama.data.images import BrokenImage

if TYPE_CHECKING:
    from torch import nn

    from illama.data.source import Source
    from illama.evaluation.subject import Subject

SAMPLED = 16  # images whose content counts, evenly spaced


def data_id(source: Source) -> str:
    """SHA-256, hexadecimal, of the class names, of label and file name of every image, and of some images' content.

    Folders do not count: the same data set has the same name on another machine. Of the content `SAMPLED` images stand
    for all, since reading all would take as long as what the name is to save: another version of the images under the
    same names (a corruption, another size) has another name, an exchange of single images need not.
    """
    found = hashlib.sha256(json.dumps(list(source.classes)).encode())
    found.update(source.labels.astype("<i8").tobytes())
    for i in range(len(source)):
        found.update(Path(source.location(i)).name.encode(errors="surrogateescape") + b"\0")
    for part in range(min(SAMPLED, len(source))):
        found.update(_content(source, part * len(source) // min(SAMPLED, len(source))))
    return found.hexdigest()


def _content(source: Source, i: int) -> bytes:
    """SHA-256 of an image as it is stored, or of its pixels where a source keeps no files; b"" where it is broken."""
    try:
        stored = source.encoded(i)
        return hashlib.sha256(source.read(i).tobytes() if stored is None else stored).digest()
    except BrokenImage:
        return b""


def weights_id(model: nn.Module) -> str:
    """SHA-256, hexadecimal, of name, dtype, shape and bytes of every tensor of the state_dict, on any device.

    What is no weight does not count: the configuration, and the softness of a mask.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        found.update(plain.flatten().view(torch.uint8).numpy())
    return found.hexdigest()


def network_id(subject: Subject) -> str:
    """SHA-256, hexadecimal, of all that a network's answers depend on besides the images."""
    parts = {
        "weights": weights_id(subject.model),
        "config": subject.model.config.to_dict(),
        "transform": subject.transform.to_dict(),
        "softness": float(subject.model.softness),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def short_name(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for plain values in a file's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
