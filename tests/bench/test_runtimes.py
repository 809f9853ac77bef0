"""The peer in other programs computes what it computes in torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from illama.bench import model
from illama.bench.model import check_runtimes, runtime_cases
from illama.bench.networks import Network, Treatment
from illama.bench.options import ModelOptions, Runtime
from illama.errors import UserError
from tests.bench.conftest import TOY, build_networks

TREATMENT = Treatment(TOY, 3, "float32", torch.device("cpu"), training=False)


@pytest.fixture
def vit() -> Network:
    return build_networks(TREATMENT, ModelOptions())[1]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.filterwarnings("ignore")  # the exporter warns of itself
def test_a_runtime_is_a_case(vit: Network, runtime: Runtime) -> None:
    for package in model._NEEDS[runtime]:
        pytest.importorskip(package)
    check_runtimes([runtime])
    (case,) = runtime_cases([runtime], vit, TREATMENT, lambda share, doing: None)
    assert case.name == f"timm ViT 32 x 2 in {runtime}"
    assert (case.items, case.flops, case.bytes) == (vit.case.items, vit.case.flops, vit.case.bytes)
    assert np.asarray(case.run()).shape == (3, 5)


def loader(error: float, vit: Network) -> Callable[[Path, int], Callable[[np.ndarray], Any]]:
    """A runtime that computes the network, up to an error relative to the largest logit."""

    def load(path: Path, threads: int) -> Callable[[np.ndarray], Any]:
        assert threads == torch.get_num_threads()

        def predict(pixels: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                logits = vit.module(torch.from_numpy(pixels)).numpy()
            return logits + error * np.abs(logits).max()

        return predict

    return load


@pytest.mark.parametrize("error", [0.0, 0.01, float("nan")])
def test_a_runtime_that_computes_something_else_is_refused(
    vit: Network, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    monkeypatch.setattr(model, "_export", lambda module, images, path: None)
    monkeypatch.setitem(model._LOADERS, "onnxruntime", loader(error, vit))
    told: list[str] = []
    if error == 0:
        (case,) = runtime_cases(["onnxruntime"], vit, TREATMENT, lambda share, doing: told.append(doing))
        assert np.asarray(case.run()).shape == (3, 5)
        assert told == ["exporting timm ViT 32 x 2 to ONNX", "loading into onnxruntime"]
    else:
        with pytest.raises(UserError, match="its logits differ"):
            runtime_cases(["onnxruntime"], vit, TREATMENT, lambda share, doing: None)
