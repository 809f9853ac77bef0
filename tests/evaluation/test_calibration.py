"""Measures of confidence: worked by hand, and against independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    log_loss,
    top_k_accuracy_score,
)

from illama.errors import UserError
from illama.evaluation import Scores, scores
from illama.evaluation.calibration import (
    TEMPERATURES,
    adaptive_calibration_error,
    bin_of,
    classwise_calibration_error,
    equal_mass_reliability,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from illama.evaluation.scores import Answers, percent, refuse_non_finite
from illama.optional import torchvision_ready

BOUND = 1e-6


def random_case(images: int = 700, classes: int = 9, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0)
    logits = (sharpness * values.normal(size=(images, classes))).astype(np.float32)
    targets = np.where(values.random(images) < 0.5, logits.argmax(1), values.integers(0, classes, images))
    return logits, targets


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(params=[700, 7, 1], ids=["many", "fewer than bins", "one"])
def case(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    return random_case(request.param)


def test_the_expected_error_worked_by_hand() -> None:
    """Five bins. 0.2 and 1.0 are upper edges and belong to the bins below them; bin (0.4, 0.6] is empty."""
    confidences = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 1.0])
    hits = np.array([False, True, False, True, True, False])
    bins = reliability(confidences, hits, 5)
    assert bins.counts.tolist() == [2, 1, 0, 2, 1]
    assert bins.accuracy.tolist() == pytest.approx([0.5, 0.0, math.nan, 1.0, 0.0], nan_ok=True)
    assert bins.confidence.tolist() == pytest.approx([0.15, 0.3, math.nan, 0.75, 1.0], nan_ok=True)
    assert bins.expected_error() == pytest.approx((2 * 0.35 + 0.3 + 2 * 0.25 + 1.0) / 6)
    assert bins.maximum_error() == 1.0


@pytest.mark.parametrize("bins", [1, 5, 7, 10, 15, 49])
def test_an_upper_edge_belongs_to_its_bin(bins: int) -> None:
    """Also where k / bins times bins is not k in double precision, as for 49."""
    edges = np.array([k / bins for k in range(1, bins + 1)])
    assert bin_of(edges, bins).tolist() == list(range(bins))
    above = np.minimum(np.arange(1, bins + 1), bins - 1)
    assert bin_of(np.nextafter(edges, 2), bins).tolist() == above.tolist()
    assert bin_of(np.array([0.0]), bins).tolist() == [0]


def test_equal_mass_bins_worked_by_hand() -> None:
    """Three bins of five images: two, two, one."""
    confidences = np.array([0.9, 0.5, 0.6, 0.7, 0.8])
    hits = np.array([True, True, False, True, False])
    bins = equal_mass_reliability(confidences, hits, 3)
    assert bins.counts.tolist() == [2, 2, 1]
    assert bins.edges.tolist() == [0.0, 0.6, 0.8, 0.9]
    assert bins.expected_error() == pytest.approx((2 * abs(0.5 - 0.55) + 2 * abs(0.5 - 0.75) + 0.1) / 5)


def test_equal_mass_bins_do_not_depend_on_the_order_of_equal_confidences() -> None:
    values = np.random.default_rng(1)
    confidences, hits = values.choice([0.5, 0.7, 0.9], 40), values.random(40) < 0.7
    order = values.permutation(40)
    first = equal_mass_reliability(confidences, hits, 7).expected_error()
    assert equal_mass_reliability(confidences[order], hits[order], 7).expected_error() == pytest.approx(
        first, abs=1e-12
    )


def test_the_class_wise_error_worked_by_hand() -> None:
    """Two classes, two bins. Probabilities of class 0: 0.8, 0.6 (of class 0, 1) and 0.3 (of class 1)."""
    of_first = np.array([0.8, 0.6, 0.3])
    logits = np.log(np.stack((of_first, 1 - of_first), axis=1))
    # class 0: upper bin |1/2 - 0.7|, lower bin |0 - 0.3|; class 1: lower |1/2 - 0.3|, upper |1 - 0.7|
    expected = ((2 * 0.2 + 0.3) / 3 + (2 * 0.2 + 0.3) / 3) / 2
    assert classwise_calibration_error(logits, np.array([0, 1, 1]), 2) == pytest.approx(expected)


def test_the_expected_error_equals_torchmetrics(case: tuple[np.ndarray, np.ndarray]) -> None:
    assert torchvision_ready()
    from torchmetrics.classification import MulticlassCalibrationError

    logits, targets = case
    answers = Answers.of(logits, targets)
    given = torch.from_numpy(probabilities(logits)), torch.from_numpy(targets)
    other = MulticlassCalibrationError(num_classes=9, n_bins=15, norm="l1")
    other.set_dtype(torch.float64)
    assert expected_calibration_error(answers) == pytest.approx(float(other(*given)), abs=BOUND)
    other = MulticlassCalibrationError(num_classes=9, n_bins=15, norm="max")
    assert reliability(answers.confidences, answers.hits).maximum_error() == pytest.approx(
        float(other(*given)), abs=BOUND
    )


def test_the_other_errors_equal_loops(case: tuple[np.ndarray, np.ndarray]) -> None:
    logits, targets = case
    p, answers = probabilities(logits), Answers.of(logits, targets)
    order = sorted(range(len(p)), key=lambda i: p[i].max())
    parts = [part for part in np.array_split(order, 15) if len(part)]
    adaptive = sum(abs(sum((p[i].argmax() == targets[i]) - p[i].max() for i in part)) for part in parts) / len(p)
    assert adaptive_calibration_error(answers) == pytest.approx(adaptive, abs=BOUND)
    by_class = 0.0
    for c in range(9):
        for k in range(15):
            inside = (k / 15 < p[:, c]) & (p[:, c] <= (k + 1) / 15)
            by_class += abs(((targets == c) - p[:, c])[inside].sum())
    assert classwise_calibration_error(logits, targets) == pytest.approx(by_class / (9 * len(p)), abs=BOUND)


def test_likelihood_brier_and_accuracy_equal_scikit_learn() -> None:
    logits, targets = random_case()
    p, answers, labels = probabilities(logits), Answers.of(logits, targets), list(range(9))
    assert answers.losses.mean() == pytest.approx(log_loss(targets, p, labels=labels), abs=BOUND)
    other = brier_score_loss(targets, p, labels=labels, scale_by_half=False)
    assert answers.briers.mean() == pytest.approx(other, abs=BOUND)
    for k in (1, 3, 5):
        assert percent(answers.ranks < k) == pytest.approx(100 * top_k_accuracy_score(targets, p, k=k, labels=labels))
    other_counts = confusion_matrix(targets, p.argmax(1), labels=labels)
    assert np.array_equal(answers.confusion(9), other_counts)
    assert answers.balanced_accuracy(9) == pytest.approx(100 * balanced_accuracy_score(targets, p.argmax(1)))


def test_a_class_without_images_has_no_recall_and_no_weight() -> None:
    answers = Answers.of(np.eye(4)[[0, 1, 2]], np.array([0, 0, 2]))
    assert answers.recalls(4).tolist() == pytest.approx([50, math.nan, 100, math.nan], nan_ok=True)
    assert answers.balanced_accuracy(4) == 75


def test_answers_agree_with_the_evaluation_of_a_run() -> None:
    """Also on ties, where the lower class number comes first."""
    values = np.random.default_rng(2)
    logits, targets = values.integers(0, 3, (200, 6)).astype(np.float32), values.integers(0, 6, 200)
    answers, single = Answers.of(logits, targets), Scores.of(torch.from_numpy(logits), torch.from_numpy(targets))
    assert answers.ranks.tolist() == single.ranks.tolist()
    assert answers.hits.tolist() == (answers.predictions == targets).tolist()
    assert answers.losses == pytest.approx(single.losses.double().numpy(), rel=1e-5)


def test_chunks_do_not_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = random_case()
    whole, error = Answers.of(logits, targets), classwise_calibration_error(logits, targets)
    monkeypatch.setattr(scores, "CHUNK_VALUES", 9 * 13)
    parts = Answers.of(logits, targets)
    for name in Answers.__dataclass_fields__:
        assert np.array_equal(getattr(whole, name), getattr(parts, name))
    assert classwise_calibration_error(logits, targets) == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1000.0, -1000.0])
def test_large_logits_do_not_overflow(shift: float) -> None:
    logits = np.array([[900.0, 0.0, -900.0]], dtype=np.float32) + np.float32(shift)
    answers = Answers.of(logits, np.array([1]))
    assert (answers.losses[0], answers.confidences[0], answers.briers[0]) == (900.0, 1.0, 2.0)


def test_one_class_and_two_classes() -> None:
    one = Answers.of(np.zeros((3, 1)), np.zeros(3, dtype=np.int64))
    assert (expected_calibration_error(one), one.losses.mean(), percent(one.ranks < 1)) == (0, 0, 100)
    two = Answers.of(np.log([[0.75, 0.25]]), np.array([0]))
    assert expected_calibration_error(two) == pytest.approx(0.25)
    assert two.briers.mean() == pytest.approx(2 * 0.25**2)


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_synthetic_logits_is_found(true_temperature: float) -> None:
    """Labels are drawn from softmax(logits); the logits given are those times T. Standard error about 0.02 T."""
    values = np.random.default_rng(3)
    logits = 2 * values.normal(size=(8000, 5))
    targets = (probabilities(logits).cumsum(axis=1) < values.random((8000, 1))).sum(axis=1)
    found = fit_temperature(true_temperature * logits, targets)
    assert found == pytest.approx(true_temperature, rel=0.05)
    least = Answers.of(true_temperature * logits, targets, found).losses.mean()
    for other in (0.98 * found, 1.02 * found):
        assert Answers.of(true_temperature * logits, targets, other).losses.mean() > least


def test_a_temperature_beyond_the_bounds_is_a_bound() -> None:
    logits = np.array([[3.0, 0.0], [0.0, 2.0]])
    assert fit_temperature(logits, np.array([0, 1])) == TEMPERATURES[0]
    assert fit_temperature(logits, np.array([1, 0])) == TEMPERATURES[1]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    logits, targets = random_case(6)
    logits[2, 3] = logits[4, 0] = bad
    for measure in (Answers.of, classwise_calibration_error, fit_temperature):
        with pytest.raises(UserError, match="of 2 of 6 images are not finite, the first of image 2 "):
            measure(logits, targets)
    with pytest.raises(UserError, match="the first of image 30 "):
        refuse_non_finite(logits, 10 * np.arange(6) + 10)


def test_no_image_is_refused() -> None:
    for measure in (Answers.of, classwise_calibration_error, fit_temperature):
        with pytest.raises(UserError, match="no image"):
            measure(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
