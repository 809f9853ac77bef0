"""The loss around the weights: directions, a grid that can be stopped, and a network that comes back unharmed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from illama.analysis import landscape as module
from illama.analysis.landscape import (
    circle_mean,
    image_losses,
    landscape,
    landscape_figure,
    mean_loss,
    radius_below,
    why_not,
)
from illama.analysis.landscape.measures import (
    MovableWeights,
    coordinates,
    fill_grid,
    filter_normalized_directions,
    filter_rows,
)
from illama.analysis.registry import LandscapeOptions
from illama.analysis.report import Measure
from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation import evaluate_model
from illama.evaluation.subject import Subject, open_subject
from tests.analysis.common import KINDS, every_kind, network

FEW = LandscapeOptions(images=8, points=3)


@pytest.fixture
def subject(digits_run: Path) -> Subject:
    return open_subject(digits_run, device="cpu", batch_size=8)


def grids(workspace: Path) -> list[Path]:
    return [path for path in workspace.iterdir() if not path.stem.endswith("-error")]


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@every_kind
def test_every_filter_has_the_norm_of_the_weights_and_one_axis_stands_still(kind: str) -> None:
    torch.manual_seed(0)
    parameters = dict(network(**KINDS[kind]).named_parameters())
    first, second = filter_normalized_directions(parameters, seed=3)
    for direction in (first, second):
        assert direction.keys() == parameters.keys()
        for name, weights in parameters.items():
            moved = direction[name]
            assert (moved.shape, moved.dtype) == (weights.shape, weights.dtype)
            if weights.dim() < 2:
                assert not moved.any(), name
            else:
                norms = [filter_rows(name, each.detach()).norm(dim=1) for each in (moved, weights)]
                # one division and one product between them, in double precision
                torch.testing.assert_close(*norms, rtol=1e-14, atol=0)
    for name, weights in parameters.items():
        if weights.dim() >= 2:
            assert not torch.equal(first[name], second[name]), name


def test_what_a_filter_is() -> None:
    parameters = dict(network(position="learned").named_parameters())
    filters = {name: filter_rows(name, weights).shape for name, weights in parameters.items() if weights.dim() > 1}
    assert filters["pos_embed"] == (7, 16)  # one for each token
    assert filters["cls_token"] == (1, 16)
    assert filters["patch_embed.proj.weight"] == (16, 2 * 2 * 2)  # one for each output channel
    assert filters["blocks.0.attn.qkv.weight"] == (3 * 16, 16)  # one for each channel of q, k and v


def test_directions_follow_from_the_seed_alone() -> None:
    torch.manual_seed(0)
    parameters = dict(network().named_parameters())
    one = filter_normalized_directions(parameters, 5)
    torch.rand(7)
    again, other = filter_normalized_directions(parameters, 5), filter_normalized_directions(parameters, 6)
    for name, weights in parameters.items():
        assert torch.equal(one[0][name], again[0][name])
        assert torch.equal(one[1][name], again[1][name])
        assert weights.dim() < 2 or not torch.equal(one[0][name], other[0][name])


def test_a_filter_of_zeros_stays_where_it_is() -> None:
    weights = torch.randn(3, 4)
    weights[1] = 0
    first, _ = filter_normalized_directions({"w": weights}, 0)
    assert not first["w"][1].any()
    assert first["w"].isfinite().all()


def test_a_quadratic_gives_the_grid_that_can_be_computed_by_hand() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.5, 4.0]]))
    home, first, second = layer.weight.detach().clone(), torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    first[0, 0], second[1, 2] = 2.0, 1.0
    weights = MovableWeights(layer, {"weight": first}, {"weight": second})

    def loss(a: float, b: float) -> float:
        with weights.moved(a, b):
            return float((layer.weight.detach() - home).square().sum())

    axis = coordinates(1.0, 5)
    assert axis == [-1.0, -0.5, 0.0, 0.5, 1.0]
    grid = fill_grid(axis, loss, None, {})
    expected = np.array([[4 * a * a + b * b for a in axis] for b in axis])
    assert np.array_equal(grid, expected), "rows are the second direction"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_weights_come_back_bit_for_bit(error: type[BaseException] | None) -> None:
    model = network()
    before = bits(model)
    weights = MovableWeights(model, *filter_normalized_directions(dict(model.named_parameters()), 0))
    for a, b in ((0.3, -0.7), (0.0, 0.0), (1e30, 1e300)):
        if error is None:
            with weights.moved(a, b):
                assert (bits(model) == before) == (a == b == 0)
        else:
            with pytest.raises(error), weights.moved(a, b):
                raise error
        assert bits(model) == before


def test_the_middle_is_the_networks_own_loss_exactly(subject: Subject) -> None:
    options = LandscapeOptions(images=20, points=3)
    before, training = bits(subject.model), subject.model.training
    found = landscape(subject, options)
    sample = subject.sample(20, options.seed)
    own = SubsetSource(subject.source, sample.positions.numpy(), "the sample")
    expected = evaluate_model(subject.model, subject.on(own).loader(), 10).loss
    assert found.values["grid"][1][1] == found.values["loss"] == expected
    assert bits(subject.model) == before
    assert subject.model.training is training
    assert found.values["grid"][0][0] != expected


def test_batches_are_bounded_and_do_not_change_the_loss(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = subject.sample(9)
    whole = mean_loss(subject.model, sample, 9)
    assert mean_loss(subject.model, sample, 2) == pytest.approx(whole, rel=1e-6)  # float32 in another order
    seen = []
    forward = subject.model.forward
    monkeypatch.setattr(subject.model, "forward", lambda images: seen.append(len(images)) or forward(images))
    monkeypatch.setattr("illama.analysis.capture.MOST_VALUES", 1)
    landscape(subject, FEW)
    assert set(seen) == {1}


def test_a_stopped_grid_goes_on_and_ends_the_same_in_every_bit(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = landscape(subject, FEW, tmp_path / "straight")
    before, calls = bits(subject.model), []

    def stopping(*args: object) -> float:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return mean_loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "mean_loss", stopping)
    with pytest.raises(KeyboardInterrupt):
        landscape(subject, FEW, tmp_path / "stopped")
    assert bits(subject.model) == before
    resumed = landscape(subject, FEW, tmp_path / "stopped")
    assert len(calls) == 4 + 1 + 5, "the four finished points are not computed again"
    assert resumed.json() == straight.json()
    (one,), (other,) = (grids(tmp_path / name) for name in ("straight", "stopped"))
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setattr(module, "image_losses", None)
    assert landscape(subject, FEW, tmp_path / "stopped").json() == straight.json()
    assert len(calls) == 10, "a finished grid needs no network"


def test_a_last_line_that_was_cut_short_is_computed_again(tmp_path: Path) -> None:
    file, axis = tmp_path / "grid.jsonl", coordinates(1.0, 3)
    whole = fill_grid(axis, lambda a, b: a + 10 * b, file, {"of": "a test"})
    content = file.read_bytes()
    for length in (len(content) - 4, content.index(b"\n") - 3, 0):
        file.write_bytes(content[:length])
        assert np.array_equal(fill_grid(axis, lambda a, b: a + 10 * b, file, {"of": "a test"}), whole)
        assert file.read_bytes() == content


def test_files_of_something_else_are_refused_and_kept(tmp_path: Path) -> None:
    file, axis = tmp_path / "grid.jsonl", coordinates(1.0, 3)
    fill_grid(axis, lambda a, b: a, file, {"of": "a test"})
    content = file.read_bytes()
    with pytest.raises(UserError, match="another network, other images or options; give another folder"):
        fill_grid(axis, lambda a, b: a, file, {"of": "another"})
    assert file.read_bytes() == content
    file.write_bytes(content.replace(b'"row"', b'"rew"'))
    with pytest.raises(UserError, match="is damaged; delete it"):
        fill_grid(axis, lambda a, b: a, file, {"of": "a test"})


@pytest.mark.parametrize("changed", ["weights", "images", "options", "softness"])
def test_each_network_image_set_and_option_has_a_file_of_its_own(
    subject: Subject, tmp_path: Path, changed: str
) -> None:
    first = landscape(subject, FEW, tmp_path / "kept")
    options = FEW
    if changed == "weights":
        with torch.no_grad():
            subject.model.head.weight[0, 0] += 0.1
    elif changed == "images":
        subject = subject.on(SubsetSource(subject.source, np.arange(100), "fewer"))
    elif changed == "options":
        options = LandscapeOptions(images=8, points=3, seed=1)
    else:
        subject.model.set_softness(0.0)
    second = landscape(subject, options, tmp_path / "kept")
    assert len(grids(tmp_path / "kept")) == 2, "nothing is lost"
    assert first.values["grid"] != second.values["grid"]


def test_losses_that_are_not_finite_are_holes_and_are_counted(subject: Subject, tmp_path: Path) -> None:
    far = landscape(subject, LandscapeOptions(images=4, points=3, extent=1e40), tmp_path / "kept")  # beyond float32
    assert far.values["not_finite"] == 8
    assert far.values["grid"][0][0] is None
    assert far.values["loss"] is not None
    assert far.tables["landscape.csv"].splitlines()[1].endswith(",")
    assert "8 of 9 points have no finite loss" in far.section.blocks[0].text
    lines = [json.loads(line) for line in grids(tmp_path / "kept")[0].read_text().splitlines()]
    assert [line["value"] for line in lines[1:]].count(None) == 8


def test_circles_and_radii_of_known_surfaces() -> None:
    axis = coordinates(1.0, 41)
    plane = np.array([[3.0 + a - 2 * b for a in axis] for b in axis])
    assert circle_mean(plane, axis, 0.5) == pytest.approx(3.0, abs=1e-12)
    cone = np.array([[1.0 + math.hypot(a, b) for a in axis] for b in axis])
    # a chord of the cone over a cell of width 0.05 stands off by no more than 0.05^2 / (8 * radius)
    assert circle_mean(cone, axis, 0.5) == pytest.approx(1.5, abs=0.05**2 / 2)
    assert radius_below(cone, axis, 1.55) == pytest.approx(0.54, abs=0.011)
    assert radius_below(cone, axis, 9.0) == 1.0
    assert radius_below(cone, axis, 1.0) is None
    assert circle_mean(cone, axis, 1.01) is None
    holed = cone.copy()
    holed[20, 40] = math.nan
    assert circle_mean(holed, axis, 1.0) is None
    assert radius_below(holed, axis, 9.0) == pytest.approx(0.94, abs=1e-9), "the cell before the hole begins at 0.95"


@pytest.mark.parametrize("kind", ["flat", "steep", "holes", "nothing", "bowl"])
def test_pictures_are_drawn_whatever_the_surface(kind: str) -> None:
    axis = coordinates(1.0, 5)
    a, b = np.meshgrid(axis, axis)
    grid = {
        "flat": np.ones((5, 5)),
        "steep": 1e-3 * np.exp(20 * (a * a + b * b)),
        "holes": np.where(a > 0.4, np.nan, a * a + b * b),
        "nothing": np.full((5, 5), np.nan),
        "bowl": 1 + a * a + b * b,
    }[kind]
    figure = landscape_figure(grid, axis)
    assert figure.svg.startswith(b"<?xml")
    assert figure.svg == landscape_figure(grid, axis).svg
    assert ("equal ratios" in figure.caption) == (kind == "steep")


def test_the_finding_says_what_was_measured(subject: Subject, tmp_path: Path) -> None:
    found = landscape(subject, FEW)
    values = json.loads(found.json())
    assert (values["images"], values["points"], values["extent"]) == (8, 3, 1.0)
    assert set(values["circles"]) == {"0.25", "0.5", "1"}
    losses = image_losses(subject.model, subject.sample(8, FEW.seed), 8).losses.double().numpy()
    assert values["loss_standard_error"] == pytest.approx(losses.std(ddof=1) / 8**0.5, rel=1e-6)
    shown = f"{values['loss']:.3f} \N{PLUS-MINUS SIGN} {values['loss_standard_error']:.3f} nats"
    assert found.summary[0] == Measure(
        "loss at the weights (8 images)", f"{shown} (mean \N{PLUS-MINUS SIGN} standard error)"
    )
    assert found.summary[1].value == f"{', '.join(f'{loss:.3f}' for loss in values['circles'].values())} nats"
    rows = found.tables["landscape.csv"].splitlines()
    assert rows[0] == "a,b,loss"
    assert [float(cell) for cell in rows[5].split(",")] == [0.0, 0.0, values["loss"]]


def test_the_table_gives_every_loss_at_its_own_place(subject: Subject) -> None:
    found = landscape(subject, FEW)
    axis, grid = found.values["axis"], found.values["grid"]
    rows = [[float(cell) for cell in line.split(",")] for line in found.tables["landscape.csv"].splitlines()[1:]]
    assert {(a, b): loss for a, b, loss in rows} == {
        (axis[column], axis[row]): grid[row][column] for row in range(3) for column in range(3)
    }
    assert grid[0][2] != grid[2][0], "rows are the second direction"


def test_the_seed_chooses_directions_and_images(subject: Subject) -> None:
    def grid(images: int, seed: int) -> list[list[float]]:
        options = LandscapeOptions(images=images, points=3, seed=seed)
        return list(landscape(subject, options).values["grid"])

    assert grid(8, 0)[1][1] != grid(8, 1)[1][1], "other images"
    subject = subject.on(SubsetSource(subject.source, np.arange(8), "the first 8"))
    assert grid(8, 0)[1][1] == grid(8, 1)[1][1]
    assert grid(8, 0)[0][0] != grid(8, 1)[0][0], "other directions"


def test_networks_and_images_without_a_loss_are_named(subject: Subject, digits_run: Path) -> None:
    assert why_not(subject, FEW) is None
    as_numbered = open_subject(digits_run, device="cpu", numbering="data")
    with pytest.raises(UserError, match="numbered by their own classes, not by those of the network"):
        landscape(as_numbered, FEW)
    subject.model.reset_classifier(5)
    assert "an image is of class 9, but the network has 5 classes" in str(why_not(subject, FEW))
    subject.model.reset_classifier(0)
    assert why_not(subject, FEW) == "the network gives no class scores, so it has no loss"


def test_weights_without_a_finite_loss_are_refused_before_the_grid(subject: Subject, tmp_path: Path) -> None:
    with torch.no_grad():
        subject.model.get_parameter("blocks.0.attn.qkv.weight")[0, 0] = torch.nan
    with pytest.raises(UserError, match="the loss at the weights is not finite"):
        landscape(subject, LandscapeOptions(images=4, points=3), tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    assert len(file.read_text().splitlines()) == 1
