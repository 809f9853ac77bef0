"""`illama bench model` and `illama bench train`: networks side by side, a forward pass or a training step."""

from __future__ import annotations

import gc
from collections.abc import Mapping

import torch

from illama.bench.ceilings import Ceilings, measure_ceilings
from illama.bench.device import peak_bytes
from illama.bench.interleave import Effort, Rounds, measure
from illama.bench.load import OtherLoad
from illama.bench.networks import Network, Treatment, build_networks, out_of_memory, too_large, treatments
from illama.bench.options import ModelOptions
from illama.bench.profile import profile
from illama.bench.progress import BenchProgress
from illama.bench.report import bench_environment
from illama.bench.results import Group, Report, row_of
from illama.bench.runtimes import check_runtimes, runtime_cases
from illama.device import resolve_device
from illama.errors import UserError
from illama.models import ModelConfig
from illama.models.variants import VARIANTS
from illama.timers import timer_for


def bench_networks(
    options: ModelOptions, *, training: bool, configs: Mapping[str, ModelConfig] | None = None
) -> Report:
    """Measure illama and its peers at every size, precision and batch asked for.

    Args:
        options: What to measure.
        training: Training steps (forward, cross-entropy, backward, AdamW) instead of predictions.
        configs: Configurations by name instead of the family's members.

    Raises:
        UserError: The device, a peer or a runtime cannot be used, or memory runs out.
    """
    device = resolve_device(options.device)
    _check(options, device, training=training)
    sizes = dict(configs) if configs else {name: VARIANTS[name] for name in options.model}
    todo = treatments(options, sizes, device, training=training)
    with BenchProgress(len(todo)) as progress:
        progress.begin("measuring ceilings")
        ceilings = measure_ceilings(device, tuple(options.precision))
        groups = []
        for title, treatment in todo:
            progress.begin(title)
            groups.append(_group(title, treatment, options, ceilings, progress))
            progress.end()
    what = "train" if training else "model"
    lines = _how(options, training=training)
    return Report(
        what,
        "images/s",
        "illama is x times as fast",
        "illama is x\ntimes as\nfast",
        tuple(groups),
        ceilings,
        bench_environment(device),
        lines,
    )


def _check(options: ModelOptions, device: torch.device, *, training: bool) -> None:
    if options.runtimes and (training or device.type != "cpu" or "float32" not in options.precision):
        raise UserError("--runtimes compares predictions in float32 on the CPU; give bench model --device cpu")
    if options.no_timm and not options.peer:
        raise UserError("--no-timm leaves nothing to compare with; give --peer module:factory")
    if options.no_timm and options.runtimes:
        raise UserError("--runtimes runs timm's ViT; leave --no-timm out")
    if len(set(options.peer)) < len(options.peer):
        raise UserError(f"--peer names the same network twice: {' '.join(options.peer)}")
    check_runtimes(options.runtimes)


def _group(
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings, progress: BenchProgress
) -> Group:
    """Build, warm up, time, weigh and profile the networks of one group, and let go of them."""
    if treatment.compile_mode is not None:
        torch._dynamo.reset()  # compiled code of earlier groups counts towards a limit that ends compilation silently
    try:
        return _measured(title, treatment, options, ceilings, progress)
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise too_large(title) from error
        raise
    finally:
        gc.collect()
        if treatment.device.type == "cuda":
            torch.cuda.empty_cache()


def _measured(
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings, progress: BenchProgress
) -> Group:
    networks = build_networks(treatment, options)
    cases = [network.case for network in networks]
    if options.runtimes and treatment.precision == "float32":
        cases += runtime_cases(options.runtimes, networks[1], treatment, progress.tell)

    def tell(share: float, text: str) -> None:
        compiling = treatment.compile_mode is not None and text.startswith("first call")
        progress.tell(share, f"compiling, {text}" if compiling else text)

    effort, timer = Effort(options.seconds, options.rounds), timer_for(treatment.device)
    rounds = measure(cases, effort, timer=timer, load=OtherLoad.here(), on_progress=tell)
    by_name = {network.case.name: network for network in networks}
    ours = cases[0]
    rows = []
    for case in cases:
        network = by_name.get(case.name)  # None in another runtime, whose memory torch does not know
        ratio = None if case is ours else rounds.speedup(ours.name, over=case.name)
        peak = None if network is None else _memory(network, treatment)
        parameters = None if network is None else sum(p.numel() for p in network.module.parameters())
        rows.append(
            row_of(case, rounds, ceilings, treatment.precision, ratio=ratio, peak_bytes=peak, parameters=parameters)
        )
    arithmetic = None if ours.flops is None or cases[1].flops is None else cases[1].flops / ours.flops
    return Group(title, tuple(rows), rounds, _first_calls(treatment, rounds), arithmetic, _profiles(networks, options))


def _first_calls(treatment: Treatment, rounds: Rounds) -> tuple[str, ...]:
    if treatment.compile_mode is None:
        return ()
    calls = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in rounds.first_call_s.items())
    return (f"first call, compilation included: {calls}",)


def _profiles(networks: list[Network], options: ModelOptions) -> dict[str, dict[str, float]]:
    if not options.profile:
        return {}
    return {network.case.name: profile(network.module, network.eager, network.device) for network in networks}


def _memory(network: Network, treatment: Treatment) -> int | None:
    taken = peak_bytes(network.case.run, treatment.device)
    return None if taken is None else network.held_bytes() + taken


def _how(options: ModelOptions, *, training: bool) -> tuple[str, ...]:
    step = (
        "A call is one training step: forward, cross-entropy with random labels, backward, fused AdamW, gradients "
        "freed; bf16 is autocast with float32 weights."
        if training
        else "A call is one prediction of a batch that lies on the device; bf16 is weights and images in bf16."
    )
    return (
        step,
        "Random weights; every network gets the same treatment: torch.compile "
        + ("on" if options.compile else "off")
        + ", images of the same shape, the same number of threads.",
        "Peak memory is weights, optimizer state and what a call takes at its peak. Floors: the operations that the "
        "result needs at the measured ceiling, and the least traffic with memory (weights once, images, logits, what "
        "one matrix product hands to the next) at the bandwidth for data of that size.",
    )
