"""`illama bench attention`: every backend of soft-causal attention against torch's fused attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from illama.attention import BACKENDS, AttentionRequest, soft_causal_attention_qkvpacked
from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import Ceilings, OtherLoad, peak_bytes, unless_out_of_memory
from illama.bench.options import AttentionBenchOptions, BenchPrecision
from illama.bench.report import CaseRow, Group, Report, bench_environment, measure_groups
from illama.console.progress import WorkProgress
from illama.device import resolve_device
from illama.device.matmul_rate import DTYPES
from illama.device.timers import graphs_for, timer_for
from illama.errors import UserError

Attend = Callable[[torch.Tensor], torch.Tensor]
SDPA, SDPA_CAUSAL = "torch SDPA, no mask", "torch SDPA, is_causal"


def bench_attention(options: AttentionBenchOptions, keep: Callable[[Report], None] = lambda report: None) -> Report:
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
    settings = [_Setting(shape, precision, device, options) for precision in options.dtype for shape in options.shapes]
    if not every:
        _check_named(names, settings)
    report = Report(
        "attention",
        "sequences/s",
        f"x times as fast as {SDPA}",
        "x times as fast\nas SDPA, no mask",
        bench_environment(device),
        _how(options, device),
    )
    groups = [
        (setting.title, lambda ceilings, progress, setting=setting: _group(setting, names, ceilings, progress))
        for setting in settings
    ]
    report = measure_groups(report, groups, keep, device, () if options.no_ceilings else options.dtype)
    return report.demand_a_time("give a smaller batch or fewer tokens in --shape")


@dataclass(frozen=True)
class _Setting:
    """What the backends of one group are given.

    Attributes:
        shape: (B, h, N, d).
        precision: Of q, k and v.
        device: Where.
        options: What was asked for.
    """

    shape: tuple[int, int, int, int]
    precision: BenchPrecision
    device: torch.device
    options: AttentionBenchOptions

    @property
    def title(self) -> str:
        return f"(B, h, N, d) = {self.shape}, {self.precision}" + ", forward + backward" * self.options.backward

    @property
    def softness(self) -> torch.Tensor:
        return torch.tensor(self.options.softness, device=self.device)

    def why_not(self, backend: str) -> str | None:
        """Why a backend cannot serve; it is asked with a batch of one: it asks for shapes and types, never for
        values."""
        _, heads, tokens, width = self.shape
        qkv_BN3hd = torch.empty(1, tokens, 3, heads, width, device=self.device, dtype=DTYPES[self.precision])
        qkv, scale = _split(qkv_BN3hd), width**-0.5
        request = AttentionRequest(*qkv, self.softness, "causal", "post_softmax", scale, packed=qkv_BN3hd)
        return BACKENDS[backend].why_not(request)


def _how(options: AttentionBenchOptions, device: torch.device) -> tuple[str, ...]:
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


def _check_named(names: list[str], settings: list[_Setting]) -> None:
    """Refuse, before anything is measured, a backend that cannot do what was asked of it by name."""
    for name in names:
        for setting in settings:
            reason = setting.why_not(name)
            if reason is not None:
                raise UserError(
                    f"--backend {name} cannot serve {setting.shape} in {setting.precision}: {reason}; leave it out, or "
                    "give --backend all for those that can"
                )


def _group(setting: _Setting, names: list[str], ceilings: Ceilings | None, progress: WorkProgress) -> Group:
    """Time the backends at one shape side by side."""
    served, notes = _served(setting, names)
    cases: list[Case] = []
    failures: dict[str, str] = {}
    with unless_out_of_memory(lambda why: failures.update(dict.fromkeys(served, why))):
        cases += _cases(setting, served)
    rounds = Rounds({})
    if cases:
        rounds = measure(
            cases,
            Effort(setting.options.seconds, setting.options.rounds),
            timer=timer_for(setting.device),
            load=OtherLoad.here(),
            on_progress=progress.tell,
            graphs=graphs_for(setting.device),
        )
    rounds.failures |= failures
    rows = {name: CaseRow(name, failure=why) for name, why in rounds.failures.items()}
    for case in cases:
        ratio = None if case.name == SDPA else rounds.speedup(case.name, over=SDPA)
        peak = None
        with unless_out_of_memory(lambda why: None):
            peak = peak_bytes(case.run, setting.device)
        rows[case.name] = CaseRow.of(case, rounds, ceilings, setting.precision, ratio=ratio, peak_bytes=peak)
    return Group(setting.title, tuple(rows[name] for name in served), rounds, notes)


def _served(setting: _Setting, names: list[str]) -> tuple[dict[str, Attend], tuple[str, ...]]:
    """Torch's own two and every backend that can serve; and why the others cannot."""
    softness = setting.softness
    attends: dict[str, Attend] = {
        SDPA: lambda qkv: F.scaled_dot_product_attention(*_split(qkv)),
        SDPA_CAUSAL: lambda qkv: F.scaled_dot_product_attention(*_split(qkv), is_causal=True),
    }
    notes = []
    for name in names:

        def attend(qkv: torch.Tensor, backend: str = name) -> torch.Tensor:
            return soft_causal_attention_qkvpacked(qkv, softness, backend=backend)

        reason = setting.why_not(name)
        if reason is None:
            attends[f"illama {name}"] = attend
        else:
            notes.append(f'attention backend "{name}" cannot serve this request: {reason}')
    return attends, tuple(notes)


def _cases(setting: _Setting, attends: dict[str, Attend]) -> list[Case]:
    """One case for each, all on the same tensor."""
    batch, heads, tokens, width = setting.shape
    device, dtype = setting.device, DTYPES[setting.precision]
    # Of its own: the device's generator takes part in every graph, and stays in one whose capture fails.
    generator = torch.Generator(device).manual_seed(0)
    qkv_BN3hd = torch.randn(batch, tokens, 3, heads, width, device=device, dtype=dtype, generator=generator)
    qkv_BN3hd.requires_grad_(setting.options.backward)
    upstream_BhNd = None
    if setting.options.backward:
        upstream_BNhd = torch.randn(batch, tokens, heads, width, device=device, dtype=dtype, generator=generator)
        upstream_BhNd = upstream_BNhd.transpose(1, 2)
    cases = []
    for name, attend in attends.items():
        flops, moved = _cost(setting, name)
        cases.append(Case(name, _call(attend, qkv_BN3hd, upstream_BhNd), batch, flops, moved, moved))
    return cases


def _split(qkv_BN3hd: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k and v as timm's attention takes them from its packed projection: views (B, h, N, d)."""
    q, k, v = qkv_BN3hd.permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _call(attend: Attend, qkv_BN3hd: torch.Tensor, upstream_BhNd: torch.Tensor | None) -> Callable[[], object]:
    """A forward pass; with the gradient of what is attended, the gradient of the packed tensor as well."""

    def forward() -> object:
        with torch.inference_mode():
            return attend(qkv_BN3hd)

    def both() -> object:
        return torch.autograd.grad(attend(qkv_BN3hd), qkv_BN3hd, upstream_BhNd)[0]

    return forward if upstream_BhNd is None else both


def _cost(setting: _Setting, name: str) -> tuple[float, float]:
    """Needed operations and least traffic: q, k, v in, attended out; backward those again and their gradients."""
    batch, heads, tokens, width = setting.shape
    backward, itemsize = setting.options.backward, DTYPES[setting.precision].itemsize
    everything, visible = tokens**2, tokens * (tokens + 1) // 2
    scored = visible if name == SDPA_CAUSAL else everything
    weighted = visible if name == SDPA_CAUSAL or (name != SDPA and setting.options.softness == 0) else everything
    flops = 2.0 * batch * heads * width * (scored + weighted) * (3 if backward else 1)
    values = batch * heads * tokens * width * (12 if backward else 4)
    return flops, float(values * itemsize)
