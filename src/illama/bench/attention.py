"""`illama bench attention`: every backend of soft-causal attention against torch's fused attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from illama.attention import BACKENDS, AttentionRequest, soft_causal_attention_qkvpacked
from illama.bench.ceilings import measure_ceilings
from illama.bench.device import peak_bytes
from illama.bench.interleave import Case, Effort, measure
from illama.bench.load import OtherLoad
from illama.bench.networks import out_of_memory, too_large
from illama.bench.options import AttentionOptions, BenchPrecision
from illama.bench.progress import BenchProgress
from illama.bench.report import bench_environment
from illama.bench.results import Group, Report, row_of
from illama.device import resolve_device
from illama.errors import UserError
from illama.matmul_rate import DTYPES
from illama.timers import timer_for

Shape = tuple[int, int, int, int]
Attend = Callable[[torch.Tensor], torch.Tensor]
SDPA, SDPA_CAUSAL = "torch SDPA, no mask", "torch SDPA, is_causal"


def bench_attention(options: AttentionOptions) -> Report:
    """Measure attention at every shape and precision asked for, forward or forward and backward.

    Raises:
        UserError: A backend asked for by name that is unknown or cannot serve, or a device that cannot be used. With
            `all`, a backend that cannot serve is a note.
    """
    device = resolve_device(options.device)
    every = "all" in options.backend
    names = list(BACKENDS) if every else list(options.backend)
    todo = [(shape, precision) for precision in options.dtype for shape in options.shapes]
    if not every:
        _check_named(names, todo, device, options)
    with BenchProgress(len(todo)) as progress:
        progress.begin("measuring ceilings")
        ceilings = measure_ceilings(device, tuple(options.dtype))
        groups = []
        for shape, precision in todo:
            title = f"(B, h, N, d) = {shape}, {precision}" + ", forward + backward" * options.backward
            progress.begin(title)
            try:
                cases, notes = _cases(shape, precision, names, device, options)
                effort = Effort(options.seconds, options.rounds)
                rounds = measure(
                    cases, effort, timer=timer_for(device), load=OtherLoad.here(), on_progress=progress.tell
                )
                rows = tuple(
                    row_of(
                        case,
                        rounds,
                        ceilings,
                        precision,
                        ratio=None if case.name == SDPA else rounds.speedup(case.name, over=SDPA),
                        peak_bytes=peak_bytes(case.run, device),
                    )
                    for case in cases
                )
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    raise too_large(title) from error
                raise
            groups.append(Group(title, rows, rounds, notes))
            progress.end()
    lines = (
        f"Softness {options.softness:g}, given as a tensor. q, k and v are views of one packed tensor (B, N, 3, h, d), "
        "as a network's projection makes it; backward gives the gradient of that tensor. Memory: beyond that tensor.",
        "SDPA computes another function (no mask after the softmax) and is here as the yardstick of a fused kernel.",
    )
    return Report(
        "attention",
        "sequences/s",
        f"x times as fast as {SDPA}",
        "x times as fast\nas SDPA, no mask",
        tuple(groups),
        ceilings,
        bench_environment(device),
        lines,
    )


def _check_named(
    names: list[str], todo: list[tuple[Shape, BenchPrecision]], device: torch.device, options: AttentionOptions
) -> None:
    """Refuse, before anything is measured, a backend that cannot do what was asked of it by name."""
    for name in names:
        for shape, precision in todo:
            reason = BACKENDS[name].why_not(_request(shape, precision, device, options))
            if reason is not None:
                raise UserError(
                    f"--backend {name} cannot serve {shape} in {precision}: {reason}; leave it out, or give --backend "
                    "all for those that can"
                )


def _request(
    shape: Shape, precision: BenchPrecision, device: torch.device, options: AttentionOptions
) -> AttentionRequest:
    """The call that is measured, with a batch of one: backends ask for shapes and types, never for values."""
    _, heads, tokens, width = shape
    qkv_BN3hd = torch.empty(1, tokens, 3, heads, width, device=device, dtype=DTYPES[precision])
    softness = torch.tensor(options.softness, device=device)
    return AttentionRequest(*_split(qkv_BN3hd), softness, "causal", "post_softmax", width**-0.5, packed=qkv_BN3hd)


def _cases(
    shape: Shape, precision: BenchPrecision, names: list[str], device: torch.device, options: AttentionOptions
) -> tuple[list[Case], tuple[str, ...]]:
    """One case for every backend that can serve, after torch's own two; and why the others cannot."""
    softness = torch.tensor(options.softness, device=device)
    attends: dict[str, Attend] = {
        SDPA: lambda qkv: F.scaled_dot_product_attention(*_split(qkv)),
        SDPA_CAUSAL: lambda qkv: F.scaled_dot_product_attention(*_split(qkv), is_causal=True),
    }
    batch, heads, tokens, width = shape
    qkv_BN3hd = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=DTYPES[precision])
    qkv_BN3hd.requires_grad_(options.backward)
    notes = []
    for name in names:

        def attend(qkv: torch.Tensor, backend: str = name) -> torch.Tensor:
            return soft_causal_attention_qkvpacked(qkv, softness, backend=backend)

        reason = BACKENDS[name].why_not(_request(shape, precision, device, options))
        if reason is not None:
            notes.append(f'attention backend "{name}" cannot serve this request: {reason}')
            continue
        attends[f"illama {name}"] = attend
    cases = []
    for name, function in attends.items():
        flops, moved = _cost(shape, DTYPES[precision].itemsize, name, options)
        cases.append(Case(name, _call(function, qkv_BN3hd, backward=options.backward), batch, flops, moved, moved))
    return cases, tuple(notes)


def _split(qkv_BN3hd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as timm's attention takes them from its packed projection: views (B, h, N, d)."""
    q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _call(attend: Attend, qkv_BN3hd: torch.Tensor, *, backward: bool) -> Callable[[], object]:
    if not backward:

        def forward() -> object:
            with torch.inference_mode():
                return attend(qkv_BN3hd)

        return forward
    upstream = torch.randn_like(_split(qkv_BN3hd.detach())[0])

    def both() -> object:
        return torch.autograd.grad(attend(qkv_BN3hd), qkv_BN3hd, upstream)[0]

    return both


def _cost(shape: Shape, bytes_per_value: int, name: str, options: AttentionOptions) -> tuple[float, float]:
    """Needed operations and least traffic: q, k, v in, attended out; backward those again and their gradients."""
    batch, heads, tokens, width = shape
    everything, visible = tokens**2, tokens * (tokens + 1) // 2
    scored = visible if name == SDPA_CAUSAL else everything
    weighted = visible if name == SDPA_CAUSAL or (name != SDPA and options.softness == 0) else everything
    flops = 2.0 * batch * heads * width * (scored + weighted) * (3 if options.backward else 1)
    values = batch * heads * tokens * width * (12 if options.backward else 4)
    return flops, float(values * bytes_per_value)
