"""What illama is compared with, and what it costs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from illama.bench.peers import counted_cost, load_peer, timm_vit, vit_cost
from illama.errors import UserError
from illama.models.cost import multiply_adds, parameters, peer_config, training_multiply_adds
from illama.models.variants import VARIANTS
from tests.bench.conftest import TOY

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
    counted = counted_cost(vit, TOY, 3, 4, training=training)
    formula = vit_cost(TOY, 3, 4, training=training)
    assert counted.flops == formula.flops
    assert counted.bytes < formula.bytes
    assert all(p.grad is None for p in vit.parameters())


def test_a_training_step_of_a_vit_costs_three_forward_passes_but_for_the_image() -> None:
    forward = multiply_adds(peer_config(TOY))
    assert vit_cost(TOY, 1, 4, training=True).flops == 2 * training_multiply_adds(peer_config(TOY), forward)


def test_a_users_factory_may_take_the_number_of_classes(peers: str) -> None:
    assert load_peer(f"{peers}:sized", TOY)[1] == 5
    peer, classes = load_peer(f"{peers}:plain", TOY)
    assert classes == 3
    assert isinstance(peer, nn.Module)
    assert counted_cost(peer, TOY, 7, 4, training=False).flops == 2 * 3 * 32 * 32 * 3


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
