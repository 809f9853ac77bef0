"""Short names for what an answer depends on: images with their labels, and a network. Equal names, equal content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn

    from illama.data.source import Source
    from illama.evaluation.subject import Subject


def data_id(source: Source) -> str:
    """SHA-256, hexadecimal, of the class names, and of label and file name of every image in order.

    Folders do not count: the same data set has the same name on another machine. Pixels do not count either: reading
    them all would take as long as what the name is to save.
    """
    found = hashlib.sha256(json.dumps(list(source.classes)).encode())
    found.update(source.labels.astype("<i8").tobytes())
    for i in range(len(source)):
        found.update(Path(source.location(i)).name.encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()


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
