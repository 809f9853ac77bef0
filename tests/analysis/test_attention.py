"""The attention analysis: its numbers against maps taken one by one, and its report."""

from __future__ import annotations

import csv
import dataclasses
import io
import json

import numpy as np
import pytest
import torch

from illama.analysis.attention import attention, shown_layers, why_not
from illama.analysis.attention.measures import AttentionNumbers, attention_distance, measure_attention, patches_of
from illama.analysis.registry import AttentionOptions
from illama.analysis.report import Measure
from illama.errors import UserError
from illama.report import Figure, Table, Text
from tests.analysis.common import KINDS, digits_subject, every_kind, network, some_images


@pytest.mark.parametrize("softness", [0.0, 0.4])
@every_kind
def test_numbers_of_maps_taken_one_by_one(kind: str, softness: float) -> None:
    model, images = network(softness, **KINDS[kind]), some_images()
    found = measure_attention(model, images, share=0.7, shown=2)
    model.eval()
    for layer in range(model.config.depth):
        with torch.no_grad():
            maps = model.get_attention(images, layer).numpy()
        values = np.linalg.svd(maps, compute_uv=False)
        shares = np.cumsum(values, -1) / values.sum(-1, keepdims=True)
        np.testing.assert_allclose(found.curves_LhN[layer], shares.mean(0), atol=1e-9)
        assert np.array_equal(found.rank_Lh[layer], np.argmax(shares.mean(0) >= 0.7, -1) + 1)
        np.testing.assert_allclose(found.image_rank_Lh[layer], (np.argmax(shares >= 0.7, -1) + 1).mean(0))
        np.testing.assert_allclose(found.mass_Lh[layer], maps.sum(-1).mean((0, 2)), rtol=1e-12)
        normed = maps / maps.sum(-1, keepdims=True)
        entropy = -(normed * np.log(np.where(normed > 0, normed, 1))).sum(-1).mean((0, 2))
        np.testing.assert_allclose(found.entropy_Lh[layer], entropy, rtol=1e-10)
        distance = attention_distance(torch.from_numpy(maps), model.config).mean(0)
        np.testing.assert_allclose(found.distance_Lh[layer], distance, rtol=1e-12)
        if model.config.global_pool == "avg":
            rows = maps[:2].mean(1)[:, patches_of(model.config)].mean(1)
        else:
            rows = maps[:2].mean(1)[:, model.cls_index]
        np.testing.assert_allclose(found.rows_LsN[layer], rows, rtol=1e-12)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("shown", [0, 2, 9])
def test_the_size_of_the_batches_changes_nothing(shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = network(), some_images()
    one_by_one = measure_attention(model, images, shown=shown)
    monkeypatch.undo()
    together = measure_attention(model, images, shown=shown)
    assert together.rollout_sN.shape == (min(shown, 5), 7)
    for field in dataclasses.fields(AttentionNumbers):
        ours, theirs = getattr(one_by_one, field.name), getattr(together, field.name)
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14, equal_nan=True)


def test_progress_counts_every_map() -> None:
    counted: list[int] = []
    measure_attention(network(), some_images(), advance=counted.append)
    assert sum(counted) == 5 * 2 * 2


@pytest.mark.parametrize(
    ("depth", "layers"), [(12, [0, 3, 7, 11]), (24, [0, 8, 15, 23]), (4, [0, 1, 2, 3]), (2, [0, 1]), (1, [0])]
)
def test_layers_that_are_drawn(depth: int, layers: list[int]) -> None:
    assert shown_layers(depth) == layers


def test_report() -> None:
    subject = digits_subject()
    found = attention(subject, AttentionOptions(images=6, shown=3, seed=1))
    values = json.loads(found.json())
    tokens = subject.model.config.num_patches + 1
    assert values["images"] == 6
    assert values["positions"] == subject.sample(6, 1).positions.tolist()
    assert np.shape(values["rank"]) == np.shape(values["entropy_nats"]) == (2, 2)
    rows = list(csv.DictReader(io.StringIO(found.tables["attention.csv"])))
    assert [(row["layer"], row["head"]) for row in rows] == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2")]
    assert [int(row["rank"]) for row in rows] == [rank for layer in values["rank"] for rank in layer]
    assert [float(row["row_mass"]) for row in rows] == [mass for layer in values["row_mass"] for mass in layer]
    curves = list(csv.reader(io.StringIO(found.tables["attention_curves.csv"])))
    assert len(curves) == 1 + 2 * tokens
    assert curves[tokens][2:] == ["1", "1"]
    assert [block.name for block in found.section.blocks if isinstance(block, Figure)] == [
        "attention_rank",
        "attention_heads",
        "attention_rows",
        "attention_maps",
    ]
    assert any(isinstance(block, Table) and len(block.rows) == 2 for block in found.section.blocks)
    assert found.summary[0].value == f"{values['rank'][0][0]} of {tokens}"
    assert found.summary[0].published == "about 129 (iLLaMA-T, ImageNet-1K, N = 197); 81 (ViT-T)"
    first, last = (np.mean(values["rank"][layer]) for layer in (0, 1))
    assert found.summary[1] == Measure(
        "rank of attention, mean of the heads, layers 1 and 2", f"{first:.1f} and {last:.1f} of {tokens}"
    )
    assert found.summary[3].value == f"{np.mean(values['row_mass'][0]):.3f}"


def test_the_same_again_gives_the_same_numbers() -> None:
    subject, options = digits_subject(), AttentionOptions(images=2, shown=1)
    first, again = attention(subject, options), attention(subject, options)
    assert (first.summary, first.values, first.tables) == (again.summary, again.values, again.tables)


@pytest.mark.parametrize("edits", [{"cls_position": "first"}, {"global_pool": "avg"}, {"mask": "none"}, {"depth": 1}])
def test_report_of_other_networks(edits: dict[str, object]) -> None:
    found = attention(digits_subject(mask_mode="pre_softmax", **edits), AttentionOptions(images=2, shown=1))
    maps = next(block for block in found.section.blocks if isinstance(block, Figure) and block.name == "attention_maps")
    assert ("the mean of the patches" in maps.caption) == ("global_pool" in edits)


@pytest.mark.parametrize(
    ("softness", "edits", "sums_to_one", "after"),
    [
        (
            0.0,
            {},
            False,
            "softness 0. An attention map is the 17 x 17 matrix that multiplies the values: after the "
            "rotary embedding, the softmax and the mask.",
        ),
        (1.0, {}, True, "the rotary embedding, the softmax and the mask."),
        (
            0.0,
            {"mask_mode": "pre_softmax", "position": "rope"},
            True,
            "the rotary embedding, the mask and the softmax.",
        ),
        (0.0, {"mask": "none", "position": "rope2d"}, True, "after the rotary embedding and the softmax."),
        (
            0.0,
            {"mask": "none", "position": "learned"},
            True,
            "heads, no mask. An attention map is the 17 x 17 matrix that multiplies the values: after the softmax.",
        ),
    ],
)
def test_the_words_fit_the_network(softness: float, edits: dict[str, object], sums_to_one: bool, after: str) -> None:
    found = attention(digits_subject(softness, **edits), AttentionOptions(images=1, shown=1))
    assert np.allclose(found.values["row_mass"], 1, rtol=1e-5) == sums_to_one
    (table,) = (block for block in found.section.blocks if isinstance(block, Table))
    assert ("row sum" in table.header) != sums_to_one
    assert any("row sum" in measure.name for measure in found.summary) != sums_to_one
    figures = {block.name: block for block in found.section.blocks if isinstance(block, Figure)}
    assert ("row sum" in figures["attention_rows"].caption) != sums_to_one
    assert ("under a causal mask" in figures["attention_maps"].caption) == (edits.get("mask") != "none")
    assert isinstance(found.section.blocks[0], Text)
    assert after in found.section.blocks[0].text


def test_a_published_rank_belongs_to_the_published_share() -> None:
    found = attention(digits_subject(), AttentionOptions(images=1, share=0.5, shown=0))
    assert found.summary[0].published == ""
    assert "attention_maps" not in [block.name for block in found.section.blocks if isinstance(block, Figure)]


def test_numbers_that_do_not_exist_are_null() -> None:
    """A head whose patches look at the class token alone looks at no patch, so at no distance."""
    subject = digits_subject(cls_position="first", mask="none", depth=1)
    with torch.no_grad():
        qkv = subject.model.blocks[0].attn.qkv  # type: ignore[union-attr]
        for parameter in subject.model.parameters():
            parameter.zero_()
        subject.model.cls_token.fill_(1.0)
        subject.model.blocks[0].norm1.weight.fill_(1.0)  # type: ignore[union-attr]
        qkv.bias[:32], qkv.bias[32:64] = 1.0, -300.0  # type: ignore[union-attr, index]
        qkv.weight[32:64] = 300.0  # type: ignore[union-attr, index]
    found = attention(subject, AttentionOptions(images=2, shown=1))
    assert json.loads(found.json())["distance_px"] == [[None, None]]
    assert "nan" not in found.tables["attention.csv"].lower()
    assert next(measure for measure in found.summary if "distance" in measure.name).value == "- px"


def test_nothing_stands_in_the_way() -> None:
    assert why_not(digits_subject(), AttentionOptions()) is None


def test_attention_that_is_not_finite_is_one_line() -> None:
    subject = digits_subject()
    with torch.no_grad():
        subject.model.get_parameter("blocks.1.attn.qkv.weight")[0, 0] = torch.nan
    with pytest.raises(UserError, match="the attention of layer 2 is not finite"):
        attention(subject, AttentionOptions(images=2))
