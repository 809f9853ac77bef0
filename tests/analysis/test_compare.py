"""Two networks on the same images."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from illama.analysis.compare import compare
from illama.analysis.registry import ComparisonOptions
from illama.analysis.report import Measure
from illama.errors import UserError
from illama.report import Table, Text
from tests.analysis.common import some_saved

QUICK = ComparisonOptions(resamples=50)


def test_the_better_network_is_named_in_both_orders() -> None:
    weak, strong = some_saved(400, skill=0.5, seed=1), some_saved(400, skill=3.0, seed=2)
    for first, second, better in ((weak, strong, "second"), (strong, weak, "first")):
        found = compare(first, second, QUICK)
        (table,) = (block for block in found.section.blocks if isinstance(block, Table))
        verdicts = {row[0]: row[-1] for row in table.rows}
        assert verdicts["top-1"] == verdicts["negative log-likelihood"] == verdicts["Brier score"] == better


def test_the_counts_of_the_text_are_those_of_the_images() -> None:
    first, second = some_saved(seed=1), some_saved(seed=2)
    hits = [saved.answers().hits for saved in (first, second)]
    found = compare(first, second, QUICK)
    assert found.values["mcnemar"]["only_first"] == int((hits[0] & ~hits[1]).sum())
    assert found.values["mcnemar"]["only_second"] == int((hits[1] & ~hits[0]).sum())
    (text,) = (b.text for b in found.section.blocks if isinstance(b, Text) and b.text.startswith("Both are correct"))
    assert f"on {int((hits[0] & hits[1]).sum())} images" in text
    assert f"neither on {int((~hits[0] & ~hits[1]).sum())};" in text


def test_a_network_does_not_differ_from_itself() -> None:
    found = compare(some_saved(), some_saved(), QUICK)
    assert {one["difference"] for one in found.values["measures"].values()} == {0.0}
    assert {one["p_value"] for one in found.values["measures"].values()} == {1.0}
    (table,) = (block for block in found.section.blocks if isinstance(block, Table))
    assert {row[-1] for row in table.rows} == {"undecided"}


def test_only_images_that_both_could_read_count() -> None:
    whole, other = some_saved(seed=1), some_saved(seed=2)
    kept = np.delete(np.arange(60), [3, 17])
    part = some_saved(seed=2, logits=other.logits[kept], targets=other.targets[kept], indices=kept)
    found = compare(whole, part, QUICK)
    assert [found.values[name] for name in ("images", "only_in_first", "only_in_second")] == [58, 2, 0]
    small = some_saved(seed=1, logits=whole.logits[kept], targets=whole.targets[kept], indices=kept)
    assert found.values["measures"] == compare(small, part, QUICK).values["measures"]
    said = "58 images in both; 2 are only in the first"
    assert any(isinstance(b, Text) and f"Compared on the {said}." in b.text for b in found.section.blocks)
    assert Measure("images compared", said) in found.summary
    assert "58 images in both; 2 are only in the second" in [one.value for one in compare(part, whole, QUICK).summary]
    assert "images compared" not in [one.name for one in compare(whole, other, QUICK).summary]
    with pytest.raises(UserError, match="no image was read by both"):
        compare(whole, some_saved(indices=np.arange(60) + 60), QUICK)


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ({"data_id": "5", "data": "other images"}, "'some images' and 'other images'; save both"),
        ({"classes": ("class 0", "b", "class 2", "d")}, "class 1 is 'class 1' for the first and 'b' for the second"),
    ],
)
def test_other_images_and_other_classes_are_refused(edits: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        compare(some_saved(), some_saved(**edits), QUICK)
    assert "\n" not in str(caught.value)


def test_unknown_names_are_no_other_names() -> None:
    assert compare(some_saved(), some_saved(classes=()), QUICK).values["images"] == 60


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(UserError, match="have 4 and 5 classes"):
        compare(some_saved(), some_saved(num_classes=5), QUICK)


def test_logits_that_are_not_finite_are_refused() -> None:
    broken = some_saved()
    broken.logits[4, 1] = np.nan
    whole = some_saved(seed=3)
    for pair, which in (((broken, whole), "first, network 0"), ((whole, broken), "second, network 0")):
        with pytest.raises(UserError, match=f"the {which}: the logits of 1 of 60 images are not finite"):
            compare(*pair, QUICK)


def test_a_difference_names_its_sign_its_unit_and_how_small_a_chance_can_be_seen() -> None:
    found = compare(some_saved(400, 8, skill=0.5, seed=1), some_saved(400, 8, skill=3.0, seed=2), QUICK)
    summary = {measure.name: measure.value for measure in found.summary}
    values = found.values["measures"]
    assert f": {values['top1']['difference']:+.2f} points (" in summary["top-1, second - first"]
    assert f": {values['nll']['difference']:+.3f} nats (" in summary["negative log-likelihood, second - first"]
    assert summary["negative log-likelihood, second - first"].endswith(", p <= 0.039"), "2 of 51"
    assert summary["top-5, second - first"].partition("p = ")[2], "by the exact test"
    assert values["top5"]["p_value"] < 1e-6


@pytest.mark.parametrize(("images", "classes"), [(1, 4), (5, 1), (8, 2), (30, 9)])
def test_small_sets_have_a_finding(images: int, classes: int) -> None:
    found = compare(some_saved(images, classes, seed=1), some_saved(images, classes, seed=2), QUICK)
    found.json()
    rows = list(csv.DictReader(io.StringIO(found.tables["comparison.csv"])))
    assert [row["measure"] for row in rows] == list(found.values["measures"])
    assert ("top5" in found.values["measures"]) == (classes > 5)
