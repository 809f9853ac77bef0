"""`bench model` and `bench train` on networks of a toy size, with a clock that obeys."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from illama.bench import model as bench_model
from illama.bench import networks
from illama.bench.machine import Ceilings
from illama.bench.model import bench_networks
from illama.bench.networks import (
    Network,
    Treatment,
    build_illama,
    counted_cost,
    load_peer,
    timm_vit,
    vit_cost,
)
from illama.bench.options import ModelOptions
from illama.bench.report import as_markdown, write_report
from illama.errors import UserError
from illama.models.cost import (
    forward_bytes,
    multiply_adds,
    needed_multiply_adds,
    parameters,
    peer_config,
    training_multiply_adds,
    working_set_bytes,
)
from illama.models.variants import VARIANTS
from tests.bench.conftest import TOY, FakeTimer, build_networks

CPU = torch.device("cpu")


def options(**changes: Any) -> ModelOptions:
    return ModelOptions(**{"device": "cpu", "batch": (2,), "img_size": 32, "rounds": 2} | changes)


@pytest.fixture
def timer(monkeypatch: pytest.MonkeyPatch, known_ceilings: Ceilings) -> FakeTimer:
    """illama takes a millisecond, every other network a quarter more."""
    own: list[object] = []

    def build(treatment: Treatment) -> Network:
        network = build_illama(treatment)
        own.append(network.case.run)
        return network

    monkeypatch.setattr(networks, "build_illama", build)
    fake = FakeTimer(lambda run: 1.0e-3 if run in own else 1.25e-3)
    monkeypatch.setattr(bench_model, "timer_for", lambda device: fake)
    return fake


def test_a_faster_illama_has_a_ratio_above_one(timer: FakeTimer, known_ceilings: Ceilings) -> None:
    report = bench_networks(options(), training=False, configs={"toy": TOY})
    (group,) = report.groups
    own, peer = group.cases
    assert (own.name, peer.name) == ("illama", "timm ViT 32 x 2")
    assert own.ratio is None
    assert peer.ratio is not None
    assert peer.ratio.median == pytest.approx(1.25)
    assert own.items_per_s == pytest.approx(2 / 1e-3)
    needed, everything = needed_multiply_adds(TOY), multiply_adds(peer_config(TOY))
    assert group.arithmetic_ratio == pytest.approx(everything / needed)
    assert own.needed_flops_per_s == pytest.approx(2 * 2 * needed / 1e-3)
    assert own.fraction_of_matmul_ceiling == pytest.approx(
        2 * 2 * needed / 1e-3 / known_ceilings.matmul_flops_per_s["float32"]
    )
    assert own.arithmetic_floor_s == pytest.approx(2 * 2 * needed / 1e9)
    bandwidth = known_ceilings.bandwidth(working_set_bytes(TOY, 2, 4))
    assert own.bandwidth_floor_s == pytest.approx(forward_bytes(TOY, 2, 4) / bandwidth)
    assert own.parameters == parameters(TOY)
    assert own.peak_bytes is None or own.peak_bytes >= 4 * parameters(TOY)


def test_every_size_precision_and_batch_is_a_group(timer: FakeTimer) -> None:
    sizes = {"one": TOY, "two": dataclasses.replace(TOY, depth=1)}
    report = bench_networks(options(batch=(1, 3)), training=True, configs=sizes)
    titles = [f"{name}, 32 px, batch {batch}, float32" for name in ("one", "two") for batch in (1, 3)]
    assert [group.title for group in report.groups] == titles
    assert [group.cases[0].parameters for group in report.groups[1:3]] == [parameters(c) for c in sizes.values()]


def test_a_soft_mask_needs_more(timer: FakeTimer) -> None:
    causal, soft = (
        bench_networks(options(softness=softness), training=False, configs={"toy": TOY})
        .groups[0]
        .cases[0]
        .needed_flops_per_s
        for softness in (0.0, 0.5)
    )
    assert causal is not None
    assert soft is not None
    assert causal < soft
    treatment = Treatment(TOY, 1, "float32", CPU, training=False, softness=0.5)
    assert float(build_illama(treatment).module.softness) == 0.5


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_training_step_trains_and_frees_its_gradients(precision: Any) -> None:
    for network in build_networks(Treatment(TOY, 4, precision, CPU, training=True), options()):
        before = {name: p.detach().clone() for name, p in network.module.named_parameters()}
        held = network.held_bytes()
        first = float(network.case.run())  # type: ignore[arg-type]
        for _ in range(10):
            last = float(network.case.run())  # type: ignore[arg-type]
        assert last < first, network.case.name
        for name, parameter in network.module.named_parameters():
            assert parameter.grad is None
            assert parameter.dtype == torch.float32
            assert not torch.equal(parameter, before[name]), name
        moments = 2 * sum(4 * p.numel() for p in network.module.parameters())
        assert network.held_bytes() - held == pytest.approx(moments, rel=0.02)


def test_a_prediction_is_in_the_precision_asked_for() -> None:
    for network in build_networks(Treatment(TOY, 3, "bf16", CPU, training=False), options()):
        logits = network.case.run()
        assert isinstance(logits, torch.Tensor)
        assert (logits.dtype, logits.shape) == (torch.bfloat16, (3, 5))
        assert not network.module.training
        assert not logits.requires_grad


def test_compile_prepares_every_network(timer: FakeTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = []

    def fake_compile(module: torch.nn.Module, *, dynamic: bool, mode: str) -> torch.nn.Module:
        prepared.append(mode)
        return module

    monkeypatch.setattr(torch, "compile", fake_compile)
    report = bench_networks(options(compile=True), training=False, configs={"toy": TOY})
    assert prepared == ["default", "default"]
    assert report.groups[0].title.endswith(", compiled")
    assert "compilation included: illama" in report.groups[0].notes[0]
    graphs = options(compile=True, compile_mode="reduce-overhead")
    report = bench_networks(graphs, training=True, configs={"toy": TOY})
    assert prepared[2:] == ["reduce-overhead"] * 2
    assert report.groups[0].title.endswith(", compiled (reduce-overhead)")


@pytest.mark.parametrize(
    ("changes", "training", "message"),
    [
        ({"no_timm": True}, False, "nothing to compare with"),
        ({"runtimes": ("onnxruntime",)}, True, "predictions in float32 on the CPU"),
        ({"runtimes": ("onnxruntime",), "precision": ("bf16",)}, False, "predictions in float32 on the CPU"),
        ({"runtimes": ("openvino",), "no_timm": True, "peer": ("a:b",)}, False, "leave --no-timm out"),
        ({"peer": ("a:b", "a:b")}, False, "twice"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], training: bool, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bench_networks(options(**changes), training=training, configs={"toy": TOY})


def test_missing_runtimes_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'needs onnx, onnxscript, onnxruntime.*pip install "illama\[export\]"'):
        bench_networks(options(runtimes=("onnxruntime",)), training=False, configs={"toy": TOY})


def test_other_errors_stay_what_they_are(timer: FakeTimer, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(networks, "build_illama", build)
    with pytest.raises(RuntimeError, match="a bug"):
        bench_networks(options(), training=False, configs={"toy": TOY})


def test_the_report_says_everything(timer: FakeTimer, known_ceilings: Ceilings, tmp_path: Any) -> None:
    report = bench_networks(options(batch=(1, 2), profile=True), training=True, configs={"toy": TOY})
    text = as_markdown(report)
    for part in ("toy, 32 px, batch 1, float32", "1.25 (1.25-1.25)", "All together", "optimizer", "2 rounds", "torch"):
        assert part in text
    assert report.environment["processor"] in text
    assert "DISTURBED" not in text
    busy = dataclasses.replace(known_ceilings, busy_cores_of_others=0.5)
    assert "while the ceilings were measured others kept 0.50 cores busy" in as_markdown(
        dataclasses.replace(report, ceilings=busy)
    )
    written = write_report(report, tmp_path / "new" / "folder")
    assert [path.name for path in written] == ["train.md", "train.json", "train.png"]
    stored = json.loads(written[1].read_text())
    assert stored["groups"][1]["cases"][1]["ratio"]["median"] == pytest.approx(1.25)
    assert stored["groups"][1]["rounds"]["seconds_per_call"]["illama"] == pytest.approx([1e-3, 1e-3])
    assert {"processor", "cpu_cores", "torch_threads", "memory_bytes", "git_revision"} <= set(stored["environment"])
    assert {"torch", "timm", "triton", "illama", "python"} <= set(stored["environment"]["versions"])
    assert written[2].read_bytes().startswith(b"\x89PNG")


PEERS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.head = nn.Linear(3 * 32 * 32, classes)
        self.norm = nn.BatchNorm1d(classes)
    def forward(self, images):
        return self.norm(self.head(images.flatten(1)))

def plain(): return Net(3)
def sized(num_classes, bias=True): return Net(num_classes)
def three(): return 3
def broken(): raise KeyError("weights")
def other_size(): return nn.Sequential(nn.Flatten(), nn.Linear(5, 5))
def maps(): return nn.Conv2d(3, 8, 4)
number = 3
"""


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    (tmp_path / "users_peers.py").write_text(PEERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_peers", raising=False)
    return "users_peers"


@pytest.mark.parametrize("px", [224, 384, 32])
def test_timms_vit_has_the_size_of_the_variant(px: int) -> None:
    config = dataclasses.replace(VARIANTS["tiny"], img_size=px, num_classes=11)
    name, vit = timm_vit(config)
    assert name == f"timm vit_tiny_patch16_{384 if px == 384 else 224}"
    assert sum(p.numel() for p in vit.parameters()) == parameters(peer_config(config))


def test_other_sizes_get_a_vit_of_their_own() -> None:
    name, vit = timm_vit(TOY)
    assert name == "timm ViT 32 x 2"
    assert vit(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert sum(p.numel() for p in vit.parameters()) == parameters(peer_config(TOY))


@pytest.mark.parametrize("training", [False, True])
def test_counting_and_formula_agree_on_timms_vit(training: bool) -> None:
    vit = timm_vit(TOY)[1]
    treatment = Treatment(TOY, 3, "float32", CPU, training=training)
    counted, formula = counted_cost(vit, treatment), vit_cost(treatment)
    assert counted.flops == formula.flops
    assert counted.bytes < formula.bytes
    assert all(p.grad is None for p in vit.parameters())


def test_a_training_step_of_a_vit_costs_three_forward_passes_but_for_the_image() -> None:
    forward = multiply_adds(peer_config(TOY))
    treatment = Treatment(TOY, 1, "float32", CPU, training=True)
    assert vit_cost(treatment).flops == 2 * training_multiply_adds(peer_config(TOY), forward)


def test_a_users_factory_may_take_the_number_of_classes(peers: str) -> None:
    assert load_peer(f"{peers}:sized", TOY)[1] == 5
    peer, classes = load_peer(f"{peers}:plain", TOY)
    assert classes == 3
    assert isinstance(peer, nn.Module)
    treatment = Treatment(TOY, 7, "float32", CPU, training=False)
    assert counted_cost(peer, treatment).flops == 7 * 2 * 3 * 32 * 32 * 3


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}", "not of the form module:factory"),
        ("no_such_module:x", "cannot be imported: No module named 'no_such_module'"),
        ("{}:none", "has no none"),
        ("{}:number", "is a int, not something to call"),
        ("{}:three", "returned a int; it must return a torch.nn.Module"),
        ("{}:broken", "failed when called: KeyError"),
        ("{}:other_size", "does not take images of shape (1, 3, 32, 32)"),
        ("{}:maps", "must give logits of shape (B, classes)"),
    ],
)
def test_peers_that_cannot_be_used(peers: str, spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_peer(spec.format(peers), TOY)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
