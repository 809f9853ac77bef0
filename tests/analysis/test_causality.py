"""The causality probe: every token in every layer, exactly 0 where nothing leaks, and its report."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from illama.analysis import causality as causality_module
from illama.analysis.causality import LayerLeak, causality, describe, exact_copy, percent_text, spread, why_not
from illama.analysis.causality.sensitivity import changes_before_cuts, exchange, exchanged, followed_tokens
from illama.analysis.registry import CausalityOptions
from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation.subject import Subject
from illama.report import Figure, Table
from tests.analysis.common import KINDS, digits_subject, every_kind, network, some_images

AS_MANY_TOKENS: dict[str, Any] = {"img_size": 28}  # 197, as published, of 2 px


@pytest.mark.parametrize("softness", [0.0, 0.3])
@every_kind
def test_changes_of_exchanged_pixels(kind: str, softness: float) -> None:
    """Every token of every layer, from images that are put together of two, patch by patch."""
    model, images = network(softness, **KINDS[kind]).eval(), some_images(3)
    cuts = range(followed_tokens(model.config))
    found = changes_before_cuts(model, images, cuts)
    for cut, changes_LBt in zip(cuts, found, strict=True):
        kept = cut if model.config.cls_position == "first" else cut + 1  # patches that stay
        from_own = (torch.arange(6) < kept).view(3, 2).repeat_interleave(2, 0).repeat_interleave(2, 1)
        mixed = torch.where(from_own, images, images[[2, 0, 1]])
        for layer in range(model.config.depth):
            with torch.no_grad():
                after, before = (
                    model.get_features(shown, layer, tokens="all", norm=False)[:, : cut + 1]
                    for shown in (mixed, images)
                )
            expected = (after - before).norm(dim=-1) / before.norm(dim=-1)
            torch.testing.assert_close(changes_LBt[layer], expected, rtol=1e-9, atol=1e-14)


@every_kind
def test_an_exchange_is_the_last_token_behind_the_last_layer(kind: str) -> None:
    model, images = network(0.2, **KINDS[kind]), some_images()
    found = changes_before_cuts(model, images, range(followed_tokens(model.config)))
    last = torch.stack([changes_LBt[-1, :, -1].mean() for changes_LBt in found])
    torch.testing.assert_close(last, exchange(model, images), rtol=1e-12, atol=0)


@pytest.mark.usefixtures("one_by_one")
def test_the_size_of_the_batches_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images, counted = network(), some_images(), []
    one_by_one = changes_before_cuts(model, images, [0, 3], counted.append)
    assert counted == [1] * 10
    monkeypatch.undo()
    for ours, theirs in zip(one_by_one, changes_before_cuts(model, images, [0, 3]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("cls_position", ["last", "first"])
def test_not_a_single_bit_moves_where_the_mask_stands_before_the_softmax(
    cls_position: str, backend: str, dtype: torch.dtype
) -> None:
    edits = AS_MANY_TOKENS | {"mask_mode": "pre_softmax", "cls_position": cls_position, "attention_backend": backend}
    model = network(**edits).to(dtype)
    found = changes_before_cuts(model, torch.randn(3, 2, 28, 28, dtype=dtype), [0, 1, 97, 190, 194])
    assert [changes_LBt.shape for changes_LBt in found] == [(2, 3, cut + 1) for cut in (0, 1, 97, 190, 194)]
    assert not any(torch.count_nonzero(changes_LBt) for changes_LBt in found)


def test_all_earlier_tokens_move_in_the_first_layer_where_it_stands_behind_the_softmax() -> None:
    """Later keys stand in the denominators of all rows, so the leak needs no second layer."""
    for changes_LBt in changes_before_cuts(network(), some_images(), [0, 2, 4]):
        assert torch.all(changes_LBt > 0)


def test_a_modified_mask_leaks_from_its_first_token_on() -> None:
    """Before the softmax: in layer 1 the unmasked token alone hears of later patches, in layer 2 all hear of it."""
    model = network(**KINDS["modified mask"], mask_mode="pre_softmax")
    changes_LBt = changes_before_cuts(model, some_images(), [3])[0]
    assert torch.all(changes_LBt[0, :, 0] > 0)
    assert torch.count_nonzero(changes_LBt[0, :, 1:]) == 0
    assert torch.all(changes_LBt[1] > 0)


def leak_of(softness: float = 0.0, **edits: Any) -> tuple[str, list[LayerLeak]]:
    model = network(softness, **edits)
    found = changes_before_cuts(model, some_images(), range(followed_tokens(model.config)))
    layers = [LayerLeak.of(torch.cat([change[layer].flatten() for change in found])) for layer in range(2)]
    return describe(model, layers), layers


def test_sentences() -> None:
    strict, layers = leak_of(mask_mode="pre_softmax")
    assert strict == "strictly causal: no earlier token changed by a single bit"
    assert layers[-1] == LayerLeak(75, 0, 0.0, 0.0, (0.0, 0.0, 0.0))
    leaky, layers = leak_of()
    assert leaky.startswith("leaks through the softmax denominator: 75 of 75 earlier tokens changed, median relative ")
    assert leaky.endswith(f"largest {percent_text(layers[-1].largest)}, from layer 1 on")
    assert leak_of(**KINDS["peer"])[0].startswith("bidirectional: 105 of 105 earlier tokens changed")
    assert leak_of(0.25)[0].startswith("not causal at softness 0.25: ")
    modified = KINDS["modified mask"]
    both = "leaks through the softmax denominator and the unmasked row of the first token: "
    assert leak_of(**modified)[0].startswith(both)
    row, layers = leak_of(**modified, mask_mode="pre_softmax")
    assert row.startswith("leaks through the unmasked row of the first token: 105 of 105 ")
    assert [layer.moved for layer in layers] == [30, 105]


@pytest.mark.parametrize("seed", range(3))
def test_softness_and_no_mask_are_louder_than_the_denominator(seed: int) -> None:
    """Of the same weights on the same images: all three have the same parameters."""
    medians = []
    for edits in ({}, {"softness": 0.5}, {"mask": "none"}):
        torch.manual_seed(seed)
        medians.append(leak_of(**edits)[1][-1].median)  # type: ignore[arg-type]
    assert medians[0] < medians[1] < medians[2]


def test_numbers_of_a_layer_by_hand() -> None:
    layer = LayerLeak.of(torch.tensor([[0.0, 0.0, 0.1], [0.3, 0.2, 0.0]]))
    assert (layer.earlier, layer.moved) == (6, 3)
    assert layer.median == pytest.approx(0.2)
    assert layer.largest == pytest.approx(0.3)
    assert layer.quantiles == pytest.approx((0.0, 0.05, 0.25))


@pytest.mark.parametrize(
    ("change", "text"),
    [(0.0, "exactly 0"), (0.027, "2.7 %"), (1.5, "150 %"), (3e-5, "0.003 %"), (3.1e-9, "3.1e-09")],
)
def test_changes_for_people(change: float, text: str) -> None:
    assert percent_text(change) == text


@pytest.mark.parametrize(
    ("places", "count", "cuts"),
    [(6, 3, [1, 3, 5]), (5, 9, [0, 1, 2, 3, 4]), (195, 1, [97]), (1, 8, [0]), (195, 2, [48, 146])],
)
def test_cuts_are_spread(places: int, count: int, cuts: list[int]) -> None:
    assert spread(places, count) == cuts


def test_the_copy_is_exact_and_the_network_left_alone() -> None:
    model = network(0.3, attention_backend="blocked").float()
    copied = exact_copy(model)
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float64}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert float(copied.softness) == float(model.softness)
    assert copied.blocks[0].attn.config.attention_backend == "auto"  # type: ignore[union-attr]
    assert model.blocks[0].attn.config.attention_backend == "blocked"  # type: ignore[union-attr]
    images = some_images(3)
    with torch.no_grad():
        torch.testing.assert_close(copied.eval()(images).float(), model.eval()(images.float()), rtol=1e-4, atol=1e-4)


def test_large_networks_stay_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causality_module, "MOST_DOUBLE", 1000)
    found = causality(digits_subject(), CausalityOptions(images=2, cuts=2))
    assert found.values["precision"] == "float32"
    assert found.values["layers"][-1]["moved"] > 0


@pytest.mark.parametrize("mask_mode", ["pre_softmax", "post_softmax"])
def test_report(mask_mode: str) -> None:
    subject = digits_subject(mask_mode=mask_mode)
    found = causality(subject, CausalityOptions(images=3, cuts=4))
    values, strict = json.loads(found.json()), mask_mode == "pre_softmax"
    assert values["strictly_causal"] is strict
    assert values["precision"] == "double precision"
    assert values["cuts"] == [1, 5, 9, 13]
    assert found.summary[0].value == values["verdict"]
    earlier = 3 * (2 + 6 + 10 + 14)
    assert [layer["earlier"] for layer in values["layers"]] == [earlier] * 2
    assert [layer["moved"] for layer in values["layers"]] == [0 if strict else earlier] * 2
    rows = list(csv.DictReader(io.StringIO(found.tables["causality.csv"])))
    assert [(row["cut_token"], row["layer"]) for row in rows][:3] == [("1", "1"), ("1", "2"), ("5", "1")]
    assert max(float(row["largest"]) for row in rows if row["layer"] == "2") == values["layers"][1]["largest"]
    tokens = list(csv.DictReader(io.StringIO(found.tables["causality_tokens.csv"])))
    assert len(tokens) == 2 + 6 + 10 + 14
    assert all((float(row["mean_relative_change_after_the_last_layer"]) == 0) == strict for row in tokens)
    assert sum(isinstance(block, Figure) for block in found.section.blocks) == 1
    table = next(block for block in found.section.blocks if isinstance(block, Table))
    assert ("exactly 0" in table.rows[0]) == strict


@pytest.mark.parametrize(
    "edits", [{"mask": "none"}, {"cls_position": "first", "mask": "modified_causal"}, {"depth": 1}]
)
def test_report_of_other_networks(edits: dict[str, Any]) -> None:
    found = causality(digits_subject(0.5, **edits), CausalityOptions(images=2, cuts=1))
    assert not found.values["strictly_causal"]


def test_nothing_to_exchange() -> None:
    subject, options = digits_subject(), CausalityOptions()
    assert why_not(subject, options) is None
    one = subject.on(SubsetSource(subject.source, np.array([0]), "the first"))
    assert why_not(one, options) == f"causality needs at least two images; {one.source.description} has 1"
    with pytest.raises(UserError, match="at least two images"):
        causality(one, options)
    assert "a single patch" in str(why_not(digits_subject(patch_size=8), options))


def test_pictures_that_end_alike_are_left_out_and_counted() -> None:
    subject = digits_subject()
    width = subject.model.config.height_width[1]

    class Same(SubsetSource):
        """All pictures have one lower half; the first two are the same altogether."""

        def read(self, i: int) -> Image.Image:
            pixels = np.full((8, width), 7, dtype=np.uint8)
            pixels[:4] = 20 * max(1, i)
            return Image.fromarray(pixels)

    def same(count: int) -> Subject:
        return subject.on(Same(subject.source, np.arange(count), "alike"))

    found = causality(same(3), CausalityOptions(images=3, cuts=4))
    assert found.values["cuts"] == [1, 5]  # nothing differs after the others
    assert found.values["exchanges_left_out"] == 2 * 3 + 2 * 1
    assert found.values["layers"][0]["earlier"] == 2 * (2 + 6)
    with pytest.raises(UserError, match="the images chosen are the same; causality needs images that differ"):
        causality(same(2), CausalityOptions(images=2))


@pytest.mark.parametrize("cls_position", ["first", "last"])
def test_where_pictures_differ(cls_position: str) -> None:
    images = torch.zeros(2, 2, 6, 4)
    images[1, 1, 3, 1] = 1  # patch 2 of 0 to 5
    config = network(cls_position=cls_position).config
    shift = 1 if cls_position == "first" else 0
    for patch in range(5 + shift):
        expected = patch - shift < 2
        assert exchanged(images, config, [patch]).tolist() == [[expected, expected]]


def test_tokens_that_are_not_finite_prove_nothing() -> None:
    subject = digits_subject()
    with torch.no_grad():
        subject.model.get_parameter("blocks.1.attn.qkv.weight")[0, 0] = torch.nan
    with pytest.raises(UserError, match="some tokens are not finite"):
        causality(subject, CausalityOptions(images=2, cuts=2))
