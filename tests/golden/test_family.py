"""The full-size family: parameter counts, names and shapes, logits and gradient statistics."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from illama.models import VARIANTS, ILlama
from tests.golden.common import load, read_json, rebuilt_parameter, relative_l2

FAMILY = read_json("family.json")
OUTPUTS = read_json("family_outputs.json")


@pytest.mark.parametrize("name", FAMILY)
def test_names_shapes_and_count(name: str) -> None:
    row = FAMILY[name]
    config = dataclasses.replace(
        VARIANTS[row["variant"]],
        img_size=row["img_size"],
        patch_size=row["patch_size"],
        num_classes=row["num_classes"],
    )
    with torch.device("meta"):
        model = ILlama(config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    assert shapes == dict(row["state_dict"])
    assert sum(p.numel() for p in model.parameters()) == row["parameter_count"]
    assert (config.hidden_dim, config.head_dim) == (row["swiglu_hidden"], row["head_dim"])


def rebuilt(name: str) -> tuple[ILlama, torch.Tensor]:
    """A full-size model with the parameters of the formula, and its input."""
    import numpy as np

    row = OUTPUTS["models"][name]
    with torch.device("meta"):  # initial values that are replaced anyway are not drawn
        model = ILlama(dataclasses.replace(VARIANTS[row["variant"]], img_size=row["img_size"]))
    model.to_empty(device="cpu")
    state, total, squares = {}, 0.0, 0.0
    for key, value in model.state_dict().items():
        x = rebuilt_parameter(key, tuple(value.shape)).astype(np.float32)
        state[key] = torch.from_numpy(x)
        total += float(x.sum(dtype=np.float64))
        squares += float(np.square(x, dtype=np.float64).sum())
    model.load_state_dict(state, assign=True)
    check = row["param_checksum"]
    assert total == pytest.approx(check["sum_of_all"], rel=1e-6)
    assert squares == pytest.approx(check["sum_of_squares"], rel=1e-9)
    size = row["img_size"]
    images = np.random.RandomState(7).standard_normal((2, 3, size, size)).astype(np.float32)
    return model, torch.from_numpy(images[: row["images"]])


@pytest.mark.parametrize("name", OUTPUTS["models"])
def test_logits_and_gradient_statistics(name: str) -> None:
    model, images = rebuilt(name)
    row, stored = OUTPUTS["models"][name], load("family_outputs.safetensors")
    for softness in row["softness"]:
        model.set_softness(softness)
        with torch.no_grad():
            logits = model(images)
        assert relative_l2(logits, stored[f"{name}/s{softness:g}/logits_f64"]) < 2e-5
    if "grad" not in row:
        return
    model.set_softness(row["loss"]["softness"])
    loss = F.cross_entropy(model(images), torch.tensor(row["loss"]["targets"]))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(row["loss"]["f64"], rel=2e-6)
    gradients = {key: p.grad.double() for key, p in model.named_parameters()}
    assert set(gradients) == set(row["grad"])
    for key, expected in row["grad"].items():
        gradient = gradients[key]
        assert float(gradient.norm()) == pytest.approx(expected["l2"], rel=1e-5), key
        assert float(gradient.sum()) == pytest.approx(expected["sum"], abs=1e-5 * expected["abs_sum"]), key
        rms = expected["l2"] / gradient.numel() ** 0.5
        assert gradient.flatten()[:4].tolist() == pytest.approx(expected["first4"], abs=2e-4 * rms), key
