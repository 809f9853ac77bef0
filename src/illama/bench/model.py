"""`illama bench model` and `illama bench train`: networks side by side, a forward pass or a training step."""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from illama.bench.interleave import Case, Effort, Rounds, measure
from illama.bench.machine import Ceilings, OtherLoad, free_memory, peak_bytes, unless_out_of_memory
from illama.bench.networks import OURS, Network, Treatment, network_builders, random_batch, treatments
from illama.bench.options import ModelOptions, Runtime
from illama.bench.profile import profile
from illama.bench.report import CaseRow, Group, Report, bench_environment, measure_groups
from illama.console.progress import WorkProgress
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
    report = Report(
        "train" if training else "model",
        "images/s",
        "illama is x times as fast",
        "illama is x\ntimes as\nfast",
        bench_environment(device),
        _how(options, training=training),
    )
    groups = [
        (title, partial(_group, title, treatment, options))
        for title, treatment in treatments(options, sizes, device, training=training)
    ]
    report = measure_groups(report, groups, keep, device, () if options.no_ceilings else options.precision)
    return report.demand_a_time("give a smaller --batch or --img-size")


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
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings | None, progress: WorkProgress
) -> Group:
    """Build, warm up, time, weigh and profile the networks of one group, and let go of them."""
    if treatment.compile_mode is not None:
        torch._dynamo.reset()  # compiled code of earlier groups counts towards a limit that ends compilation silently
    try:
        return _measured(title, treatment, options, ceilings, progress)
    finally:
        free_memory()


def _measured(
    title: str, treatment: Treatment, options: ModelOptions, ceilings: Ceilings | None, progress: WorkProgress
) -> Group:
    networks: dict[str, Network] = {}
    failures: dict[str, str] = {}
    builders = network_builders(treatment, options)
    names = list(builders)
    peer = names[1]
    for name, build in builders.items():
        with unless_out_of_memory(partial(failures.__setitem__, name)):
            networks[name] = build()
    cases = [network.case for network in networks.values()]
    if options.runtimes and treatment.precision == "float32":
        names += [runtime_name(peer, runtime) for runtime in options.runtimes]
        cases += _elsewhere(options, peer, networks, treatment, failures, progress)
    rounds = _timed(cases, networks, treatment, options, progress) if cases else Rounds({})
    rounds.failures = failures | rounds.failures
    rows = {name: CaseRow(name, failure=why) for name, why in rounds.failures.items()}
    for case in cases:
        network = networks.get(case.name)  # None in another runtime, whose memory torch does not know
        rows[case.name] = CaseRow.of(
            case,
            rounds,
            ceilings,
            treatment.precision,
            ratio=None if case.name == OURS else rounds.speedup(OURS, over=case.name),
            peak_bytes=None if network is None else _memory(network, treatment),
            parameters=None if network is None else sum(p.numel() for p in network.module.parameters()),
        )
    notes = []
    if treatment.compile_mode is not None:
        calls = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in rounds.first_call_s.items())
        notes.append(f"first call, compilation included: {calls}")
    if rounds.failures and cases:
        notes.append("all networks of a group are in memory at once: alone, one that is out of memory here may fit")
    profiles: dict[str, dict[str, float]] = {}
    for name, network in networks.items() if options.profile else ():
        with unless_out_of_memory(lambda why, name=name: notes.append(f"profile of {name}: {why}")):  # type: ignore[misc]
            profiles[name] = profile(network.module, network.eager, network.device)
    flops = [networks[name].case.flops if name in networks else None for name in (OURS, peer)]
    arithmetic = None if flops[0] is None or flops[1] is None else flops[1] / flops[0]
    return Group(title, tuple(rows[name] for name in names), rounds, tuple(notes), arithmetic, profiles)


def _timed(
    cases: list[Case],
    networks: dict[str, Network],
    treatment: Treatment,
    options: ModelOptions,
    progress: WorkProgress,
) -> Rounds:
    """Rounds of the networks; those for which there is no memory are gone from both."""

    def tell(share: float, doing: str) -> None:
        compiling = treatment.compile_mode is not None and doing.startswith("first call")
        progress.tell(share, f"compiling, {doing}" if compiling else doing)

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
    progress: WorkProgress,
) -> list[Case]:
    """The peer in other runtimes; none, with a failure for each, where there is no memory for it."""
    why = failures.get(peer)
    if why is None:
        told: list[str] = []
        with unless_out_of_memory(told.append):
            return runtime_cases(options.runtimes, networks[peer], treatment, progress.tell)
        why = told[0]
    failures |= {runtime_name(peer, runtime): why for runtime in options.runtimes}
    return []


def _memory(network: Network, treatment: Treatment) -> int | None:
    """Memory at the peak; None where it cannot be measured."""
    with unless_out_of_memory(lambda why: None):
        taken = peak_bytes(network.case.run, treatment.device)
        return None if taken is None else network.held_bytes() + taken
    return None


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


AGREEMENT = 1e-3  # largest difference of logits relative to the largest logit: the export must be the same network
_NEEDS: dict[Runtime, tuple[str, ...]] = {
    "onnxruntime": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}
Predict = Callable[[np.ndarray], Any]


def check_runtimes(runtimes: Sequence[Runtime]) -> None:
    """Refuse, before anything is measured, runtimes that are not installed.

    Raises:
        UserError: Packages are missing; the message says how to install them.
    """
    for runtime in runtimes:
        missing = [package for package in _NEEDS[runtime] if importlib.util.find_spec(package) is None]
        if missing:
            extra = "openvino" if runtime == "openvino" else "export"
            raise UserError(
                f"--runtimes {runtime} needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not "
                f'installed; pip install "illama[{extra}]"'
            )


def runtime_cases(
    runtimes: Sequence[Runtime], network: Network, treatment: Treatment, tell: Callable[[float, str], None]
) -> list[Case]:
    """The network exported to ONNX and loaded into each runtime, with torch's number of threads, as cases.

    Args:
        runtimes: Which.
        network: What is exported: timm's ViT of the group, in float32 on the CPU.
        treatment: The group's.
        tell: Told what happens.

    Raises:
        UserError: A runtime computes something else than torch does.
    """
    images = random_batch(treatment)[0]
    pixels = images.numpy()
    module = copy.deepcopy(network.module).eval()
    with torch.no_grad():
        expected = module(images).numpy()
    cases = []
    with tempfile.TemporaryDirectory(prefix="illama-bench-") as folder:
        path = Path(folder) / "peer.onnx"
        tell(0.0, f"exporting {network.case.name} to ONNX")
        _export(module, images, path)
        for runtime in runtimes:
            tell(0.0, f"loading into {runtime}")
            predict = _LOADERS[runtime](path, torch.get_num_threads())
            logits = np.asarray(predict(pixels))
            if not np.abs(logits - expected).max() <= AGREEMENT * np.abs(expected).max():
                raise UserError(f"--runtimes {runtime}: its logits differ from torch's; its time would mean nothing")
            name = runtime_name(network.case.name, runtime)
            cases.append(replace(network.case, name=name, run=partial(predict, pixels)))
    return cases


def runtime_name(network: str, runtime: Runtime) -> str:
    """What a network in a runtime is called."""
    return f"{network} in {runtime}"


def _export(module: nn.Module, images: torch.Tensor, path: Path) -> None:
    """Quietly: the exporter talks about its own deprecations, which are nothing a user could act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            torch.onnx.export(module, (images,), str(path), dynamo=True, external_data=True, verbose=False)
        finally:
            logging.disable(logging.NOTSET)


def _load_onnxruntime(path: Path, threads: int) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Its threads spin while they wait, which is fast; after a call they must not take the CPU from the other cases.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


def _load_openvino(path: Path, threads: int) -> Predict:
    import openvino

    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(core.read_model(str(path)), "CPU", settings).create_infer_request()
    return lambda pixels: request.infer([pixels])[0]


_LOADERS: dict[Runtime, Callable[[Path, int], Predict]] = {
    "onnxruntime": _load_onnxruntime,
    "openvino": _load_openvino,
}
