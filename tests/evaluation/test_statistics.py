"""Intervals that cover what they should, and tests of two classifiers worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from illama.evaluation import statistics
from illama.evaluation.calibration import (
    expected_calibration_error,
)
from illama.evaluation.scores import Answers, percent
from illama.evaluation.statistics import (
    balanced_accuracy_interval,
    bootstrap_p_value,
    intervals,
    mcnemar,
    measure_rows,
    measures,
    paired_differences,
    percentile_interval,
    resampled_means,
)


def random_answers(seed: int = 0, images: int = 300, skill: float = 1.0) -> Answers:
    values = np.random.default_rng(seed)
    targets = np.random.default_rng(99).integers(0, 6, images)
    logits = values.normal(size=(images, 6))
    logits[np.arange(images), targets] += skill
    return Answers.of(logits, targets)


def test_measures_of_means_are_the_measures() -> None:
    answers = random_answers()
    found = measures(measure_rows(answers).mean(axis=0))
    expected = {
        "top1": percent(answers.ranks < 1),
        "top5": percent(answers.ranks < 5),
        "nll": answers.losses.mean(),
        "brier": answers.briers.mean(),
        "ece": expected_calibration_error(answers),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, abs=1e-12)


def test_resampled_measures_are_those_of_the_drawn_images() -> None:
    """Also of the calibration error, whose bins are resampled with the images."""
    answers = random_answers(images=40)
    found = measures(resampled_means(measure_rows(answers), 5, seed=7))
    generator = np.random.default_rng(7)
    for sample in range(5):
        drawn = answers.take(generator.integers(40, size=40))
        assert found["ece"][sample] == pytest.approx(expected_calibration_error(drawn), abs=1e-12)
        assert found["top1"][sample] == pytest.approx(percent(drawn.ranks < 1), abs=1e-12)


def test_chunks_and_sparse_rows_do_not_change_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).random((50, 3))
    whole = resampled_means(rows, 20, seed=1)
    assert resampled_means(csr_matrix(rows), 20, seed=1) == pytest.approx(whole, abs=1e-12)
    monkeypatch.setattr(statistics, "CHUNK_VALUES", 160)
    assert resampled_means(rows, 20, seed=1) == pytest.approx(whole, abs=1e-12)
    assert not np.array_equal(resampled_means(rows, 20, seed=2), whole)


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    """200 sets of 100 coins of 0.7: 95 % of the intervals should hold 0.7; 200 trials scatter by 1.5 %."""
    values = np.random.default_rng(5)
    covered = 0
    for trial in range(200):
        coins = (values.random((100, 1)) < 0.7).astype(np.float64)
        low, high = percentile_interval(resampled_means(coins, 300, seed=trial)[:, 0])
        covered += low <= 0.7 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_the_interval_of_the_accuracy_is_as_wide_as_the_binomial_says() -> None:
    answers = random_answers(images=2000)
    share = float(answers.hits.mean())
    low, high = intervals(measure_rows(answers), measures, 1000, 0)["top1"]
    assert high - low == pytest.approx(2 * 1.96 * 100 * math.sqrt(share * (1 - share) / 2000), rel=0.1)
    assert low < 100 * share < high


def test_the_balanced_accuracy_of_drawn_images() -> None:
    answers = random_answers(images=30)  # few enough that a sample lacks a class now and then
    generator, found = np.random.default_rng(3), []
    for _ in range(50):
        drawn = answers.take(generator.integers(30, size=30))
        found.append(100 * np.mean([drawn.hits[drawn.targets == c].mean() for c in np.unique(drawn.targets)]))
    expected = percentile_interval(np.array(found))
    assert balanced_accuracy_interval(answers, 6, 50, 3) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p_value"),
    [
        (0, 0, 1.0),
        (3, 3, 1.0),
        (1, 0, 1.0),  # 2 / 2
        (0, 5, 2 / 32),
        (5, 0, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
    ],
)
def test_mcnemar_worked_by_hand(only_first: int, only_second: int, p_value: float) -> None:
    both, neither = 4, 2
    first = np.array([True] * (both + only_first) + [False] * (only_second + neither))
    second = np.array([True] * both + [False] * only_first + [True] * only_second + [False] * neither)
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(p_value))


@pytest.mark.parametrize(
    ("below", "zero", "above", "p_value"), [(4, 0, 95, 0.1), (95, 0, 4, 0.1), (0, 0, 99, 0.02), (0, 99, 0, 1.0)]
)
def test_the_bootstrap_p_value_worked_by_hand(below: int, zero: int, above: int, p_value: float) -> None:
    differences = np.repeat([-0.3, 0.0, 0.2], [below, zero, above])
    assert bootstrap_p_value(differences) == pytest.approx(p_value)


def test_hits_of_one_and_of_five_are_compared_exactly_and_the_rest_has_a_floor() -> None:
    first, second = random_answers(1, 400, skill=0.5), random_answers(2, 400, skill=2.0)
    found = paired_differences(first, second, resamples=99)
    for name, k in (("top1", 1), ("top5", 5)):
        assert found[name].p_value == mcnemar(first.ranks < k, second.ranks < k).p_value
        assert found[name].floor == 0
    for name in ("nll", "brier", "ece"):
        assert found[name].floor == pytest.approx(0.02)
        assert found[name].p_value >= found[name].floor
    assert found["nll"].p_value == found["nll"].floor, "no sample stands on the other side"


def test_equal_classifiers_do_not_differ() -> None:
    answers = random_answers()
    for one in paired_differences(answers, answers, resamples=50).values():
        assert (one.difference, *one.interval, one.p_value) == (0, 0, 0, 1)


def test_a_better_classifier_is_found_and_the_other_way_round() -> None:
    weak, strong = random_answers(1, 1000, skill=0.5), random_answers(2, 1000, skill=2.0)
    there = paired_differences(weak, strong, resamples=200)
    back = paired_differences(strong, weak, resamples=200)
    for name, sign in (("top1", 1), ("nll", -1), ("brier", -1)):
        low, high = there[name].interval
        assert sign * low > 0
        assert sign * high > 0
        assert there[name].p_value < 0.02
        assert back[name].difference == -there[name].difference
        assert back[name].interval == pytest.approx((-high, -low), abs=1e-9)
        assert back[name].p_value == pytest.approx(there[name].p_value)


def test_pairing_makes_the_interval_narrower() -> None:
    """Two networks that err on the same images: their difference is far more certain than their accuracies."""
    values = np.random.default_rng(0)
    targets = values.integers(0, 6, 1000)
    logits = values.normal(size=(1000, 6))
    logits[np.arange(1000), targets] += 1
    first, second = Answers.of(logits, targets), Answers.of(logits + 0.1 * values.normal(size=(1000, 6)), targets)
    alone = intervals(measure_rows(first), measures, 300, 0)["top1"]
    low, high = paired_differences(first, second, resamples=300)["top1"].interval
    assert high - low < 0.6 * (alone.high - alone.low)
