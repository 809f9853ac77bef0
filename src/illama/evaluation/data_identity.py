"""Short names for what an answer depends on: images with their labels, and a network. Equal names, equal content.

Folders do not count, neither do kinds of files: the same pictures have the same name on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from illama.data.decode.images import BrokenImage

if TYPE_CHECKING:
    from torch import nn

    from illama.data.eval_transform import EvalTransform
    from illama.data.source import Source
    from illama.models import ILlama

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
        found.update(_name(source, i) + b"\0")
    for i in _sampled(source):
        found.update(_content(source, i))
    return found.hexdigest()


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
        names = hashlib.sha256()
        for i in range(len(source)):
            names.update(_name(source, i) + b"\0")
        labels = hashlib.sha256(source.labels.astype("<i8").tobytes()).hexdigest()
        return cls(len(source), labels, names.hexdigest(), content_id(source))

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
    found = hashlib.sha256(source.labels.astype("<i8").tobytes())
    for i in range(len(source)):
        found.update(_name(source, i) + b"\0")
    return found.hexdigest()


def content_id(source: Source) -> str:
    """SHA-256, hexadecimal, of the content of `SAMPLED` images."""
    found = hashlib.sha256()
    for i in _sampled(source):
        found.update(_content(source, i))
    return found.hexdigest()


def image_name(source: Source, i: int) -> str:
    """What an image is called wherever it lies."""
    return os.path.basename(source.location(i))


def _name(source: Source, i: int) -> bytes:
    return image_name(source, i).encode(errors="surrogateescape")


def _sampled(source: Source) -> list[int]:
    """Positions of the images whose content counts, evenly spaced."""
    count = min(SAMPLED, len(source))
    return [part * len(source) // count for part in range(count)]


def _content(source: Source, i: int) -> bytes:
    """SHA-256 of an image as it is stored, or of its pixels where a source keeps no files; b"" where it is broken."""
    try:
        stored = source.encoded(i)
        return hashlib.sha256(source.read(i).tobytes() if stored is None else stored).digest()
    except BrokenImage:
        return b""


def weights_id(model: nn.Module) -> str:
    """`tensors_id` of a network; what is no weight does not count: the configuration, and the softness of a mask."""
    return tensors_id(model.state_dict())


def tensors_id(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256, hexadecimal, of name, dtype, shape and bytes of every tensor, on any device."""
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\0".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def network_id(model: ILlama, transform: EvalTransform) -> str:
    """SHA-256, hexadecimal, of all that a network's answers depend on besides the images."""
    parts = {
        "weights": weights_id(model),
        "config": model.config.to_dict(),
        "transform": transform.to_dict(),
        "softness": float(model.softness),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def short_name(identity: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that stand for plain values in a file's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]
