"""timm's ViT in programs made for prediction alone: the outside mark that torch has to be measured against."""

from __future__ import annotations

import copy
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from illama.bench.interleave import Case
from illama.bench.networks import Network, Treatment, random_batch
from illama.bench.options import Runtime
from illama.errors import UserError

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
