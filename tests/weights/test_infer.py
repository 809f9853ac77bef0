"""What tensors tell of their network, and one line where they do not fit or do not tell."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from illama.errors import UserError
from illama.models import ModelConfig, roadmap_config
from illama.models.variants import PEERS, ROADMAP
from illama.optional import import_timm
from illama.weights import load_model
from illama.weights.infer import HEADS_OF_WIDTH, infer_config
from tests.weights.foreign_files import cheap_state

ILLAMA = ModelConfig(img_size=32, depth=3, num_classes=5)
VIT = roadmap_config("vit", "tiny", img_size=32, depth=3, num_classes=5)


def renamed(state: dict[str, Tensor], old: str, new: str) -> dict[str, Tensor]:
    return {name.replace(old, new): tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "config",
    [
        ILLAMA,
        VIT,
        roadmap_config("learned_position", "small", img_size=48, patch_size=8, in_chans=1, num_classes=0),
        roadmap_config("vit", "base", img_size=64, depth=1, qkv_bias=False, layer_scale=1e-4),
        roadmap_config("visionllama", "small", depth=1),
    ],
)
def test_the_configuration_comes_back(config: ModelConfig) -> None:
    assert infer_config(cheap_state(config)) == config


@pytest.mark.parametrize("row", [*ROADMAP, *PEERS])
def test_every_row_can_be_said_in_words(row: str) -> None:
    """A row that shares its tensors with another one needs the fields in which they differ."""
    config = roadmap_config(row, "tiny", img_size=32, depth=1)
    edits = {field: getattr(config, field) for field in ("mask", "cls_position", "position", "drop_path_shape")}
    if row == "llama_position":
        edits["img_size"] = 32  # no learned position tells it
    assert infer_config(cheap_state(config), edits | {"img_size": 32}) == config


def test_what_is_given_wins() -> None:
    edits = {"num_heads": 6, "mask_mode": "pre_softmax", "norm_eps": 1e-5, "img_size": (64, 16)}
    assert infer_config(cheap_state(ILLAMA), edits) == dataclasses.replace(ILLAMA, **edits)  # type: ignore[arg-type]


def wrong(config: ModelConfig, **tensors: Any) -> dict[str, Tensor]:
    return cheap_state(config) | {name.replace("__", "."): tensor for name, tensor in tensors.items()}


def without(config: ModelConfig, *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in cheap_state(config).items() if not name.startswith(names)}


CASES: dict[str, tuple[dict[str, Tensor], str]] = {
    "a shape": (
        wrong(ILLAMA, blocks__2__attn__qkv__weight=torch.zeros(575, 192)),
        r"blocks\.2\.attn\.qkv\.weight is \(575, 192\) in the file and \(576, 192\) in the model: the weights fit",
    ),
    "several": (
        wrong(ILLAMA, norm__weight=torch.zeros(3), head__bias=torch.zeros(3)),
        r"norm\.weight is \(3,\) in the file and \(192,\) in the model, and 1 other",
    ),
    "missing": (without(ILLAMA, "blocks.2.norm1.weight"), r"blocks\.2\.norm1\.weight is absent in the file"),
    "a missing block": (without(ILLAMA, "blocks.1."), r"missing blocks\.1\.norm1\.weight, but not blocks\.2"),
    "cut off": (without(ILLAMA, "norm.", "head."), r"norm\.weight is absent in the file"),
    "unknown": (wrong(ILLAMA, neck__weight=torch.zeros(1)), r"neck\.weight is \(1,\) in the file and absent"),
    "distilled": (wrong(VIT, dist_token=torch.zeros(1, 1, 192)), "dist_token: a distilled DeiT"),
    "registers": (wrong(VIT, reg_token=torch.zeros(1, 4, 192)), "reg_token: a ViT with register tokens"),
    "averaging": (wrong(VIT, fc_norm__weight=torch.zeros(192)), r"fc_norm\.weight: a ViT that averages"),
    "qk norm": (
        wrong(VIT, blocks__0__attn__q_norm__weight=torch.zeros(64)),
        r"blocks\.0\.attn\.q_norm\.weight: a ViT that normalises queries",
    ),
    "another network": (
        {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        r"missing cls_token: .* first names are conv1\.weight",
    ),
    "a flat patch": (
        wrong(ILLAMA, patch_embed__proj__weight=torch.zeros(192, 768)),
        r"patch_embed\.proj\.weight is \(192, 768\)",
    ),
    "a long patch": (
        wrong(ILLAMA, patch_embed__proj__weight=torch.zeros(192, 3, 16, 8)),
        r"patch_embed\.proj\.weight is \(192, 3, 16, 8\) in the file and \(192, 3, 16, 16\)",
    ),
    "no square": (
        wrong(ILLAMA, pos_embed=torch.zeros(1, 7, 192)),
        r"pos_embed is \(1, 7, 192\): 6 patches are no square grid.*model\.img_size=",
    ),
    "heads": (
        cheap_state(dataclasses.replace(ILLAMA, embed_dim=96)),
        r"cls_token is 96 wide, which does not tell the number of heads.*model\.num_heads=",
    ),
    "another feed-forward": (
        wrong(ILLAMA, blocks__0__mlp__fc1__weight=torch.zeros(500, 192)),
        r"blocks\.0\.mlp\.fc1\.weight is \(500, 192\) in the file and \(512, 192\)",
    ),
    "ambiguous": (
        cheap_state(roadmap_config("llama_ffn", "tiny", img_size=32, depth=1)),
        r"SwiGLU with LayerNorm, which several networks have.*model\.mask=.*model\.cls_position=.*model\.position=",
    ),
    "no position": (
        cheap_state(roadmap_config("llama_position", "tiny", img_size=32, depth=1)),
        "SwiGLU with RMSNorm and no pos_embed",
    ),
    "a grid of many narrow rows": (
        wrong(ILLAMA, pos_embed=torch.zeros(1).expand(1, 3000**2 + 1, 4)),
        "has a side of more than 32768 pixels",
    ),
    "no size at all": (wrong(VIT, patch_embed__proj__weight=torch.zeros(192, 3, 0, 16)), "patch_size: 0 is not"),
    "numbers without scales": (
        wrong(ILLAMA, norm__weight=torch.ones(192, dtype=torch.int8)),
        "norm.weight is int8, but weights are float16, bfloat16, float32, float64",
    ),
    "NaN": (wrong(ILLAMA, norm__weight=torch.full((192,), torch.nan)), r"norm\.weight has values that are NaN"),
    "infinity": (wrong(ILLAMA, head__bias=torch.full((5,), -torch.inf)), r"head\.bias has values that are NaN or inf"),
    "scalars": (wrong(ILLAMA, head__weight=torch.tensor(1.0)), r"head\.weight is \(\) in the file and absent"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_one_line_with_the_name(tmp_path: Path, case: str) -> None:
    state, expected = CASES[case]
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=expected) as caught:
        load_model(tmp_path / "w.pth")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'w.pth'}: ")
    assert "\n" not in message
    assert len(message.replace(str(tmp_path), "")) < 320


def test_a_truncated_file_is_refused_before_anything_is_inferred(tmp_path: Path) -> None:
    torch.save(cheap_state(ILLAMA), tmp_path / "w.pth")
    content = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a checkpoint or is damaged"):
        load_model(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("size", "width"),
    [
        ("tiny_patch16_224", 192),
        ("small_patch16_224", 384),
        ("medium_patch16_gap_240", 512),
        ("base_patch16_224", 768),
        ("large_patch16_224", 1024),
        ("huge_patch14_224", 1280),
        ("giant_patch14_224", 1408),
        ("gigantic_patch14_224", 1664),
    ],
)
def test_the_heads_of_a_width_are_timms(size: str, width: int) -> None:
    with torch.device("meta"):
        theirs = import_timm().create_model(f"vit_{size}", depth=1)
    assert theirs.embed_dim == width
    assert HEADS_OF_WIDTH[width] == theirs.blocks[0].attn.num_heads
