"""Tensors in nested containers: each alone in its memory, copied to the CPU, counted, checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from illama.errors import UserError

T = TypeVar("T")
# Others hold part of a value (8-bit numbers without their scales) or no real number at all.
WEIGHT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def compact(tensor: Tensor) -> Tensor:
    """The tensor alone in contiguous CPU memory; itself where it is that already.

    A view would bring all of its storage into a pickle, and views into packed weights share theirs, which
    safetensors refuses.
    """
    tensor = tensor.detach().cpu().contiguous()
    alone = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone()


def demand_finite(state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that can be no weights.

    Raises:
        UserError: Names the first one of another type than `WEIGHT_TYPES`, or with a NaN or infinity in it.
    """
    for name, tensor in state.items():
        if tensor.dtype not in WEIGHT_TYPES:
            allowed = ", ".join(_type_name(dtype) for dtype in WEIGHT_TYPES)
            raise UserError(f"{name} is {_type_name(tensor.dtype)}, but weights are {allowed}; choose other weights")
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} has values that are NaN or infinite; choose weights from before that happened")


def shape_difference(given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is absent, left over or of another shape, and how many others are; None for no one."""
    wrong = [
        f"{name} is {shape_in(given, name)} in the file and {shape_in(expected, name)} in the model"
        for name in [*expected, *(name for name in given if name not in expected)]
        if name not in given or name not in expected or given[name].shape != expected[name].shape
    ]
    more = f", and {len(wrong) - 1} other tensors differ" if len(wrong) > 1 else ""
    return f"{wrong[0]}{more}" if wrong else None


def shape_in(state: Mapping[str, Tensor], name: str) -> str:
    """A tensor's shape for people."""
    return str(tuple(state[name].shape)) if name in state else "absent"


def snapshot(value: T) -> T:
    """Copy nested containers with every tensor in contiguous CPU memory of its own.

    Copies from CUDA devices run side by side into pinned memory (which torch keeps for the next snapshot) and are
    waited for once, at the end.

    Args:
        value: Mappings, lists and tuples of tensors and plain values.

    Returns:
        The same structure; nothing in it changes with the original.
    """
    streams: dict[torch.device, torch.cuda.Stream] = {}

    def copied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            target = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            return target.copy_(tensor)
        streams[tensor.device] = torch.cuda.current_stream(tensor.device)
        target = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
        return target.copy_(tensor, non_blocking=True)

    result = map_tensors(value, copied)
    for stream in streams.values():
        stream.synchronize()
    return result


def map_tensors(value: T, convert: Callable[[Tensor], Tensor]) -> T:
    """Copy nested containers, with `convert` applied to every tensor.

    What stands in two places of the original stands in the same two places of the copy: a pickle of it is as long.
    """
    copies: dict[int, Any] = {}

    def copied(part: Any) -> Any:
        if isinstance(part, Tensor | dict | list | tuple) and id(part) not in copies:
            copies[id(part)] = copy_of(part)
        return copies.get(id(part), part)

    def copy_of(part: Any) -> Any:
        if isinstance(part, Tensor):
            return convert(part)
        if isinstance(part, dict):
            changed = copy.copy(part)  # of the same type: an OrderedDict stays one
            changed.update({key: copied(inner) for key, inner in part.items()})
            return changed
        parts = [copied(inner) for inner in part]
        if isinstance(part, list):
            return parts
        same = all(new is old for new, old in zip(parts, part, strict=True))
        return part if same else type(part)(parts)

    result: T = copied(value)
    return result


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(tensor_bytes, value.values()))
    return sum(map(tensor_bytes, value)) if isinstance(value, list | tuple) else 0


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
