"""`illama bench model` and `illama bench train`: networks side by side, a forward pass or a training step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import Ceilings, OtherLoad, free_memory, measure_ceilings, peak_bytes, unless_out_of_memory
from illama.bench.networks import OURS, Network, Treatment, network_builders, treatments
from illama.bench.options import ModelOptions
from illama.bench.profile import profile
from illama.bench.progress import BenchProgress
from illama.bench.report import bench_environment
from illama.bench.results import CaseRow, Group, Report, row_of
from illama.bench.runtimes import check_runtimes, runtime_cases, runtime_name
from illama.device import resolve_device
from illama.device.timers import timer_for
from illama.errors import UserError
from illama.models import ModelConfig
from illama.models.variants import VARIANTS


def bench_networks(
    options: ModelOptions,
    *,
    training: bool,
    configs: Mapping[str, ModelConfig] | None = None,
    keep: Callable[[Report], None] = lambda report: None,
) -> Report:
    """Measure illama and its peers at every size, precision and batch asked for.

    A network for which there is no memory says so in its row, and the others go on.

    Args:
        options: What to measure.
        training: Training steps (forward, cross-entropy, backward, AdamW) instead of predictions.
        configs: Configurations by name instead of the family's members.
        keep: Given what there is after each group.

    Raises:
        UserError: The device, a peer or a runtime cannot be used, or there was memory for nothing.
    """
    device = resolve_device(options.device)
    _check(options, device, training=training)
    sizes = dict(configs) if configs else {name: VARIANTS[name] for name in options.model}
    todo = treatments(options, sizes, device, training=training)
    with BenchProgress(len(todo)) as progress:
        progress.begin("measuring ceilings")
        ceilings = None if options.no_ceilings else measure_ceilings(device, tuple(options.precision))
        report = Report(
            "train" if training else "model",
            "images/s",
            "illama is x times as fast",
            "illama is x\ntimes as\nfast",
            (),
            ceilings,
            bench_environment(device),
            _how(options, training=training),
            tuple(title for title, _ in todo),
        )
        for title, treatment in todo:
            progress.begin(title)
            report = report.with_group(_group(title, treatment, options, ceilings, progress))
            keep(report)
            progress.end()
    report.demand_a_time("give a smaller --batch or --img-size")
    return report


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
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings | None, progress: BenchProgress
) -> Group:
    """Build, warm up, time, weigh and profile the networks of one group, and let go of them."""
    if treatment.compile_mode is not None:
        torch._dynamo.reset()  # compiled code of earlier groups counts towards a limit that ends compilation silently
    try:
        return _measured(title, treatment, options, ceilings, progress)
    finally:
        free_memory()


def _measured(
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings | None, progress: BenchProgress
) -> Group:
    networks: dict[str, Network] = {}
    failures: dict[str, str] = {}
    builders = network_builders(treatment, options)
    names = list(builders)
    for name, build in builders.items():
        with unless_out_of_memory(partial(failures.__setitem__, name)):
            networks[name] = build()
    cases = [network.case for network in networks.values()]
    if options.runtimes and treatment.precision == "float32":
        for name, case in _elsewhere(options, names[1], networks, treatment, failures, progress).items():
            names.append(name)
            cases += [case] if case is not None else []
    rounds = _timed(cases, networks, treatment, options, progress) if cases else Rounds({})
    rounds.failures = failures | rounds.failures
    rows = [CaseRow.failed(name, rounds.failures[name]) if name in rounds.failures else None for name in names]
    for case in cases:
        network = networks.get(case.name)  # None in another runtime, whose memory torch does not know
        ratio = None if case.name == OURS else rounds.speedup(OURS, over=case.name)
        peak = None if network is None else _memory(network, treatment)
        parameters = None if network is None else sum(p.numel() for p in network.module.parameters())
        rows[names.index(case.name)] = row_of(
            case, rounds, ceilings, treatment.precision, ratio=ratio, peak_bytes=peak, parameters=parameters
        )
    notes = _first_calls(treatment, rounds)
    if rounds.failures and cases:
        notes += ("all networks of a group are in memory at once: alone, one that is out of memory here may fit",)
    profiles, told = _profiles(networks, options)
    arithmetic = _arithmetic(networks, names[1])
    return Group(title, tuple(row for row in rows if row is not None), rounds, (*notes, *told), arithmetic, profiles)


def _timed(
    cases: list[Case],
    networks: dict[str, Network],
    treatment: Treatment,
    options: ModelOptions,
    progress: BenchProgress,
) -> Rounds:
    """Rounds of the networks; those for which there is no memory are gone from both."""

    def tell(share: float, text: str) -> None:
        compiling = treatment.compile_mode is not None and text.startswith("first call")
        progress.tell(share, f"compiling, {text}" if compiling else text)

    def let_go(name: str) -> None:
        networks.pop(name, None)

    return measure(
        cases,
        Effort(options.seconds, options.rounds),
        timer=timer_for(treatment.device),
        load=OtherLoad.here(),
        on_progress=tell,
        on_failure=let_go,
    )


def _elsewhere(
    options: ModelOptions,
    peer: str,
    networks: dict[str, Network],
    treatment: Treatment,
    failures: dict[str, str],
    progress: BenchProgress,
) -> dict[str, Case | None]:
    """The peer in other runtimes, by name; None, with a failure, where there is no memory for it."""
    found: dict[str, Case | None] = dict.fromkeys(runtime_name(peer, runtime) for runtime in options.runtimes)
    why = failures.get(peer)
    if why is None:
        told: list[str] = []
        with unless_out_of_memory(told.append):
            cases = runtime_cases(options.runtimes, networks[peer], treatment, progress.tell)
            found |= {case.name: case for case in cases}
        why = told[0] if told else None
    if why is not None:
        failures |= dict.fromkeys(found, why)
    return found


def _arithmetic(networks: dict[str, Network], peer: str) -> float | None:
    """Needed operations of the first peer over ours; None where one of them was not measured."""
    own, other = (networks[name].case.flops if name in networks else None for name in (OURS, peer))
    return None if own is None or other is None else other / own


def _first_calls(treatment: Treatment, rounds: Rounds) -> tuple[str, ...]:
    if treatment.compile_mode is None:
        return ()
    calls = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in rounds.first_call_s.items())
    return (f"first call, compilation included: {calls}",)


def _profiles(
    networks: dict[str, Network], options: ModelOptions
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
    """Where the time of each network goes, and what to say of those for whose eager calls there is no memory."""
    found: dict[str, dict[str, float]] = {}
    told: list[str] = []
    for name, network in networks.items() if options.profile else ():
        with unless_out_of_memory(lambda why, name=name: told.append(f"profile of {name}: {why}")):  # type: ignore[misc]
            found[name] = profile(network.module, network.eager, network.device)
    return found, tuple(told)


def _memory(network: Network, treatment: Treatment) -> int | None:
    """Memory at the peak; None where it cannot be measured."""
    taken = None
    with unless_out_of_memory(lambda why: None):
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
