"""What the host has made for a device: by one copy that it does not wait for, and once where it does not change."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree

T = TypeVar("T")
_ALIGNMENT = 16  # bytes; any dtype may be viewed there


def to_device(plain: T, device: torch.device) -> T:
    """Nested containers with every tensor of the CPU on `device`; what is there already, and no tensor, stays.

    All of them travel in one copy from memory that a GPU reads by itself, so that the host may go on.
    """
    leaves, structure = _pytree.tree_flatten(plain)
    here = [leaf for leaf in leaves if _is_on_cpu(leaf)]
    if device.type == "cpu" or not here:
        return plain
    sent = iter(unpack(pack(here, pin=device.type == "cuda").to(device, non_blocking=True), here))
    return _pytree.tree_unflatten([next(sent) if _is_on_cpu(leaf) else leaf for leaf in leaves], structure)


def pack(tensors: Sequence[Tensor], *, pin: bool = False) -> Tensor:
    """Contents of tensors of the CPU one behind the other, (bytes,) uint8; pinned if asked."""
    packed = torch.empty(packed_bytes(tensors), dtype=torch.uint8, pin_memory=pin)
    for place, tensor in zip(unpack(packed, tensors), tensors, strict=True):
        place.copy_(tensor)
    return packed


def packed_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors like these take one behind the other."""
    return sum(map(_room, tensors))


def unpack(packed: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of what `pack` made of tensors like these."""
    views, at = [], 0
    for tensor in like:
        views.append(packed[at : at + tensor.nbytes].view(tensor.dtype).view(tensor.shape))
        at += _room(tensor)
    return views


def _room(tensor: Tensor) -> int:
    return -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT


def _is_on_cpu(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.device.type == "cpu"


@functools.lru_cache(maxsize=64)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor (len(values),) that nobody changes; the host waits for its copy once."""
    return torch.tensor(values, dtype=dtype, device=device)
