"""Where a run computes, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch

from illama.errors import UserError
from illama.system.processes import ask_for_repeatable_products

Precision = Literal["float32", "bf16"]
DEVICES = ("cpu", "cuda", "mps")  # kinds of devices that networks are trained and asked on


def resolve_device(name: str | None) -> torch.device:
    """The device of that name; without a name the best there is: CUDA, then MPS, then the CPU.

    Raises:
        UserError: No such device on this machine.
    """
    if name is None or name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type in DEVICES:
            torch.empty(1, device=device)
            return device
    except (RuntimeError, AssertionError, NotImplementedError):
        pass
    raise UserError(f"device {name!r} cannot be used on this machine; give cpu, cuda, cuda:N or mps")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32: by the device's own instructions."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        device.type == "cpu" and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def resolve_precision(wanted: Literal["float32", "bf16", "auto"], device: torch.device) -> Precision:
    """The recipe's precision; "auto" takes bf16 where the device has instructions for it."""
    if wanted == "auto":
        return "bf16" if has_fast_bf16(device) else "float32"
    return wanted


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """bf16 autocast, or nothing for float32."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@contextmanager
def only_repeatable(wanted: bool, device: torch.device) -> Iterator[None]:
    """Inside, only kernels that give the same bits every time may run, if `wanted`; others raise an error.

    CPU kernels do so anyway, for the same number of threads.

    Raises:
        UserError: This process has computed on CUDA already, in a way that cannot be repeated.
    """
    if not wanted:
        yield
        return
    ask_for_repeatable_products()
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        if device.type == "cuda":
            _demand_repeatable_products(device)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]


def _demand_repeatable_products(device: torch.device) -> None:
    try:
        _multiply(device)
    except RuntimeError as error:
        if "CUBLAS_WORKSPACE_CONFIG" not in str(error):
            raise
        raise UserError(
            "train.deterministic=true comes too late: this process has multiplied matrices on CUDA before; set "
            "CUBLAS_WORKSPACE_CONFIG=:4096:8 in the environment before Python starts, or restart the notebook's kernel"
        ) from error


def _multiply(device: torch.device) -> None:
    torch.ones(1, 1, device=device) @ torch.ones(1, 1, device=device)
