"""The finding about calibration: its numbers, its pictures, and small or odd sets."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest

from illama.analysis.calibration import calibration, calibration_of, scale_temperature, why_not
from illama.analysis.registry import CalibrationOptions
from illama.data.source import SubsetSource
from illama.errors import UserError
from illama.evaluation import SavedLogits, evaluate_model
from illama.evaluation.calibration import expected_calibration_error, fit_temperature
from illama.evaluation.saved_logits import CACHE_FILE
from illama.evaluation.scores import Answers
from illama.report import Figure, Table, Text
from tests.analysis.common import digits_subject, some_saved

QUICK = CalibrationOptions(resamples=20)


def test_a_network_is_judged_as_by_its_evaluation(tmp_path: Path) -> None:
    subject = digits_subject()
    assert why_not(subject, QUICK) is None
    found = calibration(subject, QUICK, tmp_path)
    result = evaluate_model(subject.model, subject.loader(), 10)
    assert found.values["measures"]["top1"] == pytest.approx(result.top1, abs=1e-9)
    assert found.values["measures"]["nll"] == pytest.approx(result.loss, rel=1e-6)
    assert calibration_of(SavedLogits.load(tmp_path / CACHE_FILE), QUICK).json() == found.json()


def test_the_summary_says_what_the_paper_says_next_to_it() -> None:
    summary = {measure.name: measure for measure in calibration_of(some_saved(), QUICK).summary}
    assert summary["expected calibration error, 15 bins"].published == "0.0335 (iLLaMA-B, ImageNet-1K)"
    scaled = calibration_of(some_saved(), QUICK).values["temperature_scaling"]
    before, after = (f"{scaled[when]['ece']:.4f}" for when in ("before", "after"))
    value = f"{after}, before {before} (T = {scaled['temperature']:.3f}, 30 held-out images)"
    assert summary["ECE after temperature scaling"].value == value
    other_bins = calibration_of(some_saved(), CalibrationOptions(bins=10, resamples=20)).summary
    assert {measure.published for measure in other_bins} == {""}


def test_temperature_is_fitted_on_some_images_and_tested_on_the_others() -> None:
    saved = some_saved(400)
    options = CalibrationOptions(fit_share=0.25, seed=3)
    scaling = scale_temperature(saved, options)
    fitted = np.sort(np.random.default_rng(3).permutation(400)[:100])
    others = np.setdiff1d(np.arange(400), fitted)
    assert (scaling.fitted_on, scaling.tested_on) == (100, 300)
    assert scaling.temperature == fit_temperature(saved.logits[fitted], saved.targets[fitted])
    before = Answers.of(saved.logits[others], saved.targets[others])
    after = Answers.of(saved.logits[others], saved.targets[others], scaling.temperature)
    assert scaling.before["ece"] == pytest.approx(expected_calibration_error(before), abs=1e-12)
    assert scaling.after["ece"] == pytest.approx(expected_calibration_error(after), abs=1e-12)
    assert scaling.after["top1"] == scaling.before["top1"]


def test_temperature_mends_a_network_that_is_too_sure() -> None:
    saved = some_saved(2000)
    boastful = dataclasses.replace(saved, logits=4 * saved.logits)
    scaling = scale_temperature(boastful, CalibrationOptions())
    assert scaling.after["nll"] < scaling.before["nll"]
    assert scaling.after["ece"] < 0.5 * scaling.before["ece"]
    assert scaling.temperature > 2


def test_the_bins_of_the_table_add_up_to_the_error() -> None:
    found = calibration_of(some_saved(), QUICK)
    rows = [row for row in csv.DictReader(io.StringIO(found.tables["reliability.csv"])) if row["temperature"] == "1.0"]
    assert len(rows) == 15
    gaps = [int(r["images"]) * abs(float(r["accuracy"]) - float(r["confidence"])) for r in rows if int(r["images"])]
    assert sum(gaps) / 60 == pytest.approx(found.values["measures"]["ece"], abs=1e-12)
    assert all(row["accuracy"] == "" for row in rows if row["images"] == "0")
    filled = [row for row in rows if int(row["images"])]
    worst = max(filled, key=lambda row: abs(float(row["accuracy"]) - float(row["confidence"])))
    assert found.values["measures"]["maximum_ce_images"] == int(worst["images"])
    (table,) = (block for block in found.section.blocks if isinstance(block, Table))
    assert table.rows[-1][1].endswith(f" (images in the bin: {worst['images']})")


@pytest.mark.parametrize(
    "saved",
    [
        some_saved(1),
        some_saved(2),
        some_saved(7, 2),
        some_saved(5, 1),
        some_saved(20, 9),
        some_saved(skill=50),
        some_saved(targets=np.full(60, 2)),
        some_saved(logits=np.zeros((60, 4), dtype=np.float32)),
        some_saved(logits=np.tile(np.float32([1000, 0, -1000, 0]), (60, 1))),
    ],
    ids=["one image", "two", "two classes", "one class", "nine", "all right", "one class's images", "equal", "sure"],
)
def test_small_and_odd_sets_have_a_finding(saved: SavedLogits) -> None:
    found = calibration_of(saved, QUICK)
    plain = json.loads(found.json())
    assert plain["images"] == len(saved)
    assert (plain["temperature_scaling"] is None) == (len(saved) == 1)
    kinds = {type(block) for block in found.section.blocks}
    assert kinds == {Text, Figure, Table}
    one_class = any(isinstance(b, Text) and "All images are of one class" in b.text for b in found.section.blocks)
    assert one_class == (len(set(saved.targets.tolist())) == 1)


def test_skipped_images_are_counted() -> None:
    found = calibration_of(some_saved(skipped={"a.jpg": "cut off"}), QUICK)
    assert any(isinstance(b, Text) and b.text.startswith("1 images could not be read") for b in found.section.blocks)


def test_logits_that_are_not_finite_are_refused() -> None:
    saved = some_saved(indices=np.arange(60) + 100)
    saved.logits[4, 1] = np.inf
    with pytest.raises(UserError, match="1 of 60 images are not finite, the first of image 104 "):
        calibration_of(saved, QUICK)


def test_images_of_other_classes_are_not_judged() -> None:
    subject = digits_subject()
    reason = why_not(dataclasses.replace(subject, numbering="data"), QUICK)
    assert reason is not None
    assert "own classes" in reason
    nothing = subject.on(SubsetSource(subject.source, np.arange(0), "none of them"))
    reason = why_not(nothing, QUICK)
    assert reason is not None
    assert reason.endswith("there is no image")
