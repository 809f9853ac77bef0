"""Where the time of a call goes, by kind of work: torch's profiler, with the modules marked by what they do.

An operator belongs to the innermost marked module around it, except where its own name says more: a linear layer is a
matrix product wherever it stands. An operator of the backward pass belongs where the operator of the forward pass stood
whose gradient it computes; autograd numbers both alike.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as torch_profile

CALLS = 3
SCOPE = "illama_bench."
BACKWARD = "autograd::engine::evaluate_function"
RESIDUAL, ROTATION, PYTHON = "residual and copies", "rotation", "Python between operators"

# Words in the name of a module's class -> kind of work of what runs in it, outside of marked modules within.
_MODULES = {
    "norm": "norm",
    "rotary": ROTATION,
    "rope": ROTATION,
    "attention": "attention",
    "attn": "attention",
    "glu": "gate",
    "mlp": "gate",
    "feedforward": "gate",
    "gelu": "gate",
    "silu": "gate",
    "linear": "matmul",
    "conv2d": "matmul",
    "loss": "loss",
}
# Words in the name of an operator that decide alone, in this order. A batched product (bmm) is left to its module.
_OPERATORS = {
    "attention": "attention",
    "log_softmax": "loss",
    "nll_loss": "loss",
    "softmax": "attention",
    "optimizer.": "optimizer",
    "adamw": "optimizer",
    "addmm": "matmul",
    "linear": "matmul",
    "convolution": "matmul",
    "_norm": "norm",
    "illama::gate": "gate",
}


def profile(module: nn.Module, run: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds per call by kind of work; the profiler's own cost is in them, so shares matter more than sums.

    On a GPU these are the times of its kernels; on the CPU those of operators, with the interpreter's time
    between them as a kind of its own.

    Args:
        module: The network that `run` calls, not compiled.
        run: One call.
        device: Where it runs.
    """
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with _marked(module):
        run()
        with _silent_stderr(), torch_profile(activities=activities, acc_events=True) as profiler:
            for _ in range(CALLS):
                with record_function(SCOPE + RESIDUAL):
                    run()
    on_gpu = device.type == "cuda"
    seconds: dict[str, float] = {}
    events = sorted(profiler.events() or [], key=lambda event: event.time_range.start)
    rotating = _rotations(events)
    forward_kinds = _forward_kinds(events)
    for event in events:
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if own_us > 0 and "CPU" in str(event.device_type):
            kind = ROTATION if event in rotating else kind_of(event, forward_kinds)
            seconds[kind] = seconds.get(kind, 0.0) + own_us / 1e6 / CALLS
    return dict(sorted(seconds.items(), key=lambda pair: -pair[1]))


def kind_of(event: Any, forward_kinds: dict[int, str]) -> str:
    """Kind of work of one profiler event.

    Args:
        event: A `FunctionEvent`, with `name` and `cpu_parent`.
        forward_kinds: Autograd's sequence number -> kind, for the backward pass.
    """
    if event.name.startswith(SCOPE):
        return PYTHON
    for ancestor in _upwards(event):
        name = ancestor.name.lower()
        if ancestor.name.startswith(SCOPE):
            return ancestor.name.removeprefix(SCOPE)
        if name in ("aten::mm", "aten::_mm"):
            return "matmul"
        for word, kind in _OPERATORS.items():
            if word in name:
                return kind
        if ancestor.name.startswith(BACKWARD):
            return forward_kinds.get(ancestor.sequence_nr, RESIDUAL)
    return RESIDUAL


def _upwards(event: Any) -> Iterator[Any]:
    while event is not None:
        yield event
        event = event.cpu_parent


def _rotations(events: list[Any]) -> set[Any]:
    """Events of the rotary embedding inside attention, which has no module of its own.

    Pairs of channels are read as complex numbers and multiplied; nothing else is complex here. So these are the events
    from a reading as complex to the end of the next multiplication.
    """
    rotations: set[Any] = set()
    span: list[Any] = []
    end_us: float | None = None
    for event in events:
        if end_us is not None and event.time_range.start <= end_us:
            rotations.add(event)  # what the multiplication calls
            continue
        end_us = None
        if span or event.name == "aten::view_as_complex":
            span.append(event)
        if span and event.name == "aten::mul":
            rotations.update(span)
            span, end_us = [], event.time_range.end
        elif any(word in event.name for word in ("bmm", "softmax", "linear")):
            span = []  # no multiplication followed: this was something else
    return rotations


def _forward_kinds(events: list[Any]) -> dict[int, str]:
    """Kind of the operator that recorded each autograd node: the last one with its number, for others never did."""
    kinds = {}
    for event in events:
        if event.sequence_nr >= 0 and not any(a.name.startswith(BACKWARD) for a in _upwards(event)):
            kinds[event.sequence_nr] = kind_of(event, {})
    return kinds


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Some builds of torch write lines of the profiler's own tracing to the process's stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _marked(module: nn.Module) -> Iterator[None]:
    """Open a named scope around every submodule whose class says what it does."""
    handles = []
    open_scopes: list[record_function] = []

    def begin(kind: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            scope = record_function(SCOPE + kind)
            scope.__enter__()
            open_scopes.append(scope)

        return hook

    def end(*_: object) -> None:
        open_scopes.pop().__exit__(None, None, None)

    for part in module.modules():
        kind = next((kind for word, kind in _MODULES.items() if word in type(part).__name__.lower()), None)
        if kind is not None:
            handles.append(part.register_forward_pre_hook(begin(kind)))
            handles.append(part.register_forward_hook(end, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
