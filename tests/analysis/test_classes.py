"""Classes and confusions, worked by hand."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

from illama.analysis import classes as module
from illama.analysis.classes import classes, classes_of, frequent_confusions, most_confident_mistakes, why_not
from illama.analysis.registry import ClassesOptions
from illama.analysis.report import short
from illama.data.imagenet import wnids
from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation import SavedLogits
from illama.evaluation.scores import Answers
from illama.report import Figure, Table, Text
from tests.analysis.common import digits_subject, some_saved

QUICK = ClassesOptions(shown=3, resamples=20)


def by_hand() -> SavedLogits:
    """Four classes, the last one without images. Class 0: two of three right; 1: none of two; 2: one of one."""
    targets = np.array([0, 0, 0, 1, 1, 2])
    predictions = np.array([0, 0, 1, 2, 2, 2])
    logits = np.zeros((6, 4), dtype=np.float32)
    logits[np.arange(6), predictions] = [9, 9, 1, 2, 3, 9]
    return some_saved(6, 4, logits=logits, targets=targets)


def test_the_numbers_by_hand() -> None:
    values = classes_of(by_hand(), QUICK).values
    assert values["balanced_accuracy"] == pytest.approx((200 / 3 + 0 + 100) / 3)
    assert values["classes_without_images"] == 1
    rows = values["per_class"]
    assert [row["accuracy"] for row in rows] == pytest.approx([200 / 3, 0, 100, None])
    assert [row["precision"] for row in rows] == pytest.approx([100, 0, 100 / 3, None])
    assert values["confusions"] == [
        {"truth": "class 1", "prediction": "class 2", "images": 2, "percent": 100.0},
        {"truth": "class 0", "prediction": "class 1", "images": 1, "percent": pytest.approx(100 / 3)},
    ]
    assert [wrong["position"] for wrong in values["most_confident_mistakes"]] == [4, 3, 2]
    assert values["most_confident_mistakes"][0]["image"] == "image 4"


def test_confusions_and_mistakes_equal_a_loop() -> None:
    saved = some_saved(300, 7)
    answers = Answers.of(saved.logits, saved.targets)
    pairs = [(int(t), int(p)) for t, p in zip(answers.targets, answers.predictions, strict=True) if t != p]
    found = frequent_confusions(answers)
    assert {(t, p): n for t, p, n, _ in found} == {pair: pairs.count(pair) for pair in pairs}
    assert [n for _, _, n, _ in found] == sorted((n for _, _, n, _ in found), reverse=True)
    worst = most_confident_mistakes(answers, 5)
    wrong = sorted(np.flatnonzero(~answers.hits).tolist(), key=lambda row: -answers.confidences[row])
    assert worst.tolist() == wrong[:5]


@pytest.mark.parametrize(("count", "figures"), [(2, 2), (30, 2), (31, 1), (60, 1)])
def test_a_matrix_is_drawn_where_it_can_be_read(count: int, figures: int) -> None:
    found = classes_of(some_saved(500, count), QUICK)
    assert sum(isinstance(block, Figure) for block in found.section.blocks) == figures
    assert len(list(csv.reader(io.StringIO(found.tables["classes.csv"])))) == count + 1


def test_many_classes_are_cut_to_the_weakest_and_the_strongest(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, float, int]] = []

    def recorded(bars: list[tuple[str, float, int]], gap_after: int | None) -> bytes:
        drawn.extend(bars)
        assert gap_after == 20
        return b"<svg/>"

    monkeypatch.setattr(module, "recall_picture", recorded)
    found = classes_of(some_saved(2000, 60), QUICK)
    accuracies = sorted(row["accuracy"] for row in found.values["per_class"])
    assert [percent for _, percent, _ in drawn] == accuracies[:20] + accuracies[-20:]
    captions = [block.caption for block in found.section.blocks if isinstance(block, Figure)]
    assert "The 20 classes between" in captions[0]


def test_classes_of_imagenet_have_words_in_tables_and_ids_in_files() -> None:
    ids = wnids()[:3]
    found = classes_of(some_saved(60, 3, classes=ids), QUICK)
    assert [row["class"] for row in found.values["per_class"]] == list(ids)
    assert [row.split(",")[0] for row in found.tables["classes.csv"].splitlines()[1:]] == list(ids)
    words = {f"{ids[0]} tench", f"{ids[1]} goldfish", f"{ids[2]} great white shark"}
    tables = [block for block in found.section.blocks if isinstance(block, Table)]
    assert len(tables) == 2
    assert all({row[-3 if "confidence" in table.header else 0] for row in table.rows} <= words for table in tables)
    assert found.summary[1].value.partition(",")[0] in words
    assert short(ids[2]) == "n01484850 great white shark"
    assert short("a class of a very long name indeed") == "a class of a very long na..."


def test_a_class_of_few_images_is_neither_the_weakest_nor_the_strongest() -> None:
    targets = np.repeat([0, 1, 2, 3], [9, 10, 20, 9])
    logits = np.zeros((48, 4), dtype=np.float32)
    correct = np.r_[:0, 9:14, 19:24, 39:48]  # none of 9, 5 of 10, 5 of 20, 9 of 9
    logits[correct, targets[correct]] = 1
    logits[np.setdiff1d(np.arange(48), correct), (targets[np.setdiff1d(np.arange(48), correct)] + 1) % 4] = 1
    found = classes_of(some_saved(48, 4, logits=logits, targets=targets), QUICK)
    assert [measure.value for measure in found.summary[1:]] == ["class 2, 25.0 % of 20", "class 1, 50.0 % of 10"]
    assert "2 classes with fewer than 10 images" in found.section.blocks[0].text  # type: ignore[union-attr]
    assert [measure.name for measure in classes_of(by_hand(), QUICK).summary] == ["balanced accuracy"]


def test_no_mistake_at_all() -> None:
    found = classes_of(some_saved(skill=50), QUICK)
    json.loads(found.json())
    assert any(isinstance(block, Text) and block.text == "There is no mistake." for block in found.section.blocks)
    assert not any(isinstance(block, Table) for block in found.section.blocks)


def test_images_of_one_class_are_refused() -> None:
    with pytest.raises(UserError, match="all 60 images are of class class 2; give"):
        classes_of(some_saved(targets=np.full(60, 2)), QUICK)
    subject = digits_subject()
    threes = np.flatnonzero(subject.source.labels == 3)[:7]
    reason = why_not(subject.on(SubsetSource(subject.source, threes, "the threes")), QUICK)
    assert reason == "all 7 images are of class 3; give a data set with images of two classes at least"


def test_mistakes_are_named_by_their_files() -> None:
    subject = digits_subject()
    assert why_not(subject, QUICK) is None
    for wrong in classes(subject, QUICK).values["most_confident_mistakes"]:
        assert wrong["image"] == subject.source.location(wrong["position"])
        assert wrong["truth"] == str(subject.source.labels[wrong["position"]])


def test_logits_that_are_not_finite_are_refused() -> None:
    saved = some_saved()
    saved.logits[4, 1] = np.nan
    with pytest.raises(UserError, match="1 of 60 images are not finite, the first of image 4 "):
        classes_of(saved, QUICK)
