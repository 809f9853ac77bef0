"""`illama bench attention`: every backend of soft-causal attention against torch's fused attention."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from illama.attention import BACKENDS, AttentionRequest, soft_causal_attention_qkvpacked
from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import Ceilings, OtherLoad, free_memory, measure_ceilings, peak_bytes, unless_out_of_memory
from illama.bench.options import AttentionOptions, BenchPrecision
from illama.bench.progress import BenchProgress
from illama.bench.report import bench_environment
from illama.bench.results import CaseRow, Group, Report, row_of
from illama.device import resolve_device
from illama.device.matmul_rate import DTYPES
from illama.device.timers import graphs_for, timer_for
from illama.errors import UserError

Shape = tuple[int, int, int, int]
Attend = Callable[[torch.Tensor], torch.Tensor]
SDPA, SDPA_CAUSAL = "torch SDPA, no mask", "torch SDPA, is_causal"


def bench_attention(options: AttentionOptions, keep: Callable[[Report], None] = lambda report: None) -> Report:
    """Measure attention at every shape and precision asked for, forward or forward and backward.

    A backend for which there is no memory says so in its row, and the others go on.

    Args:
        options: What to measure.
        keep: Given what there is after each group.

    Raises:
        UserError: A backend asked for by name that is unknown or cannot serve, or a device that cannot be used; or
            there was memory for nothing. With `all`, a backend that cannot serve is a note.
    """
    device = resolve_device(options.device)
    every = "all" in options.backend
    names = list(BACKENDS) if every else list(options.backend)
    todo = [(shape, precision) for precision in options.dtype for shape in options.shapes]
    if not every:
        _check_named(names, todo, device, options)
    with BenchProgress(len(todo)) as progress:
        progress.begin("measuring ceilings")
        ceilings = None if options.no_ceilings else measure_ceilings(device, tuple(options.dtype))
        report = Report(
            "attention",
            "sequences/s",
            f"x times as fast as {SDPA}",
            "x times as fast\nas SDPA, no mask",
            (),
            ceilings,
            bench_environment(device),
            _how(options, device),
            tuple(_title(shape, precision, options) for shape, precision in todo),
        )
        for shape, precision in todo:
            progress.begin(_title(shape, precision, options))
            report = report.with_group(_group(shape, precision, names, device, options, ceilings, progress))
            free_memory()
            keep(report)
            progress.end()
    report.demand_a_time("give a smaller batch or fewer tokens in --shape")
    return report


def _title(shape: Shape, precision: BenchPrecision, options: AttentionOptions) -> str:
    return f"(B, h, N, d) = {shape}, {precision}" + ", forward + backward" * options.backward


def _how(options: AttentionOptions, device: torch.device) -> tuple[str, ...]:
    lines = (
        f"Softness {options.softness:g}, given as a tensor. q, k and v are views of one packed tensor (B, N, 3, h, d), "
        "as a network's projection makes it; backward gives the gradient of that tensor. Memory: beyond that tensor.",
        "SDPA computes another function (no mask after the softmax) and is here as the yardstick of a fused kernel.",
    )
    if graphs_for(device) is None:
        return lines
    return (
        *lines,
        "Calls are captured in a CUDA graph, which is replayed: times are the device's, what the host does for a call "
        "is no part of them. A way that cannot be captured is marked as timed eagerly.",
    )


def _group(
    shape: Shape,
    precision: BenchPrecision,
    names: list[str],
    device: torch.device,
    options: AttentionOptions,
    ceilings: Ceilings | None,
    progress: BenchProgress,
) -> Group:
    """Time the backends at one shape side by side."""
    served, notes = _served(shape, precision, names, device, options)
    cases: list[Case] = []
    failures: dict[str, str] = {}
    with unless_out_of_memory(lambda why: failures.update(dict.fromkeys(served, why))):
        cases += _cases(shape, precision, served, device, options)
    rounds = Rounds({})
    if cases:
        rounds = measure(
            cases,
            Effort(options.seconds, options.rounds),
            timer=timer_for(device),
            load=OtherLoad.here(),
            on_progress=progress.tell,
            graphs=graphs_for(device),
        )
    rounds.failures |= failures
    rows = {name: CaseRow.failed(name, why) for name, why in rounds.failures.items()}
    for case in cases:
        ratio = None if case.name == SDPA else rounds.speedup(case.name, over=SDPA)
        peak = None
        with unless_out_of_memory(lambda why: None):
            peak = peak_bytes(case.run, device)
        rows[case.name] = row_of(case, rounds, ceilings, precision, ratio=ratio, peak_bytes=peak)
    return Group(_title(shape, precision, options), tuple(rows[name] for name in served), rounds, notes)


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


def _served(
    shape: Shape, precision: BenchPrecision, names: list[str], device: torch.device, options: AttentionOptions
) -> tuple[dict[str, Attend], tuple[str, ...]]:
    """Torch's own two and every backend that can serve; and why the others cannot."""
    softness = torch.tensor(options.softness, device=device)
    attends: dict[str, Attend] = {
        SDPA: lambda qkv: F.scaled_dot_product_attention(*_split(qkv)),
        SDPA_CAUSAL: lambda qkv: F.scaled_dot_product_attention(*_split(qkv), is_causal=True),
    }
    notes = []
    for name in names:

        def attend(qkv: torch.Tensor, backend: str = name) -> torch.Tensor:
            return soft_causal_attention_qkvpacked(qkv, softness, backend=backend)

        reason = BACKENDS[name].why_not(_request(shape, precision, device, options))
        if reason is not None:
            notes.append(f'attention backend "{name}" cannot serve this request: {reason}')
            continue
        attends[f"illama {name}"] = attend
    return attends, tuple(notes)


def _cases(
    shape: Shape, precision: BenchPrecision, attends: dict[str, Attend], device: torch.device, options: AttentionOptions
) -> list[Case]:
    """One case for each, all on the same tensor."""
    batch, heads, tokens, width = shape
    # Of its own: the device's generator takes part in every graph, and stays in one whose capture fails.
    generator = torch.Generator(device).manual_seed(0)
    dtype = DTYPES[precision]
    qkv_BN3hd = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=dtype, generator=generator)
    qkv_BN3hd.requires_grad_(options.backward)
    upstream_BhNd = None
    if options.backward:
        upstream_BNhd = torch.randn(batch, tokens, heads, width, device=device, dtype=dtype, generator=generator)
        upstream_BhNd = upstream_BNhd.transpose(1, 2)
    cases = []
    for name, function in attends.items():
        flops, moved = _cost(shape, dtype.itemsize, name, options)
        cases.append(Case(name, _call(function, qkv_BN3hd, upstream_BhNd), batch, flops, moved, moved))
    return cases


def _split(qkv_BN3hd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as timm's attention takes them from its packed projection: views (B, h, N, d)."""
    q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _call(attend: Attend, qkv_BN3hd: torch.Tensor, upstream_BhNd: torch.Tensor | None) -> Callable[[], object]:
    """A forward pass; with the gradient of what is attended, the gradient of the packed tensor as well."""
    if upstream_BhNd is None:

        def forward() -> object:
            with torch.inference_mode():
                return attend(qkv_BN3hd)

        return forward

    def both() -> object:
        return torch.autograd.grad(attend(qkv_BN3hd), qkv_BN3hd, upstream_BhNd)[0]

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
