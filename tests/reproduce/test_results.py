"""Numbers, differences and verdicts, by hand and against scipy."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from illama.reproduce.study import Claim, Collapse, Comparison, Cure, PlannedStudy, Printed, Study, StudyRow
from illama.reproduce.study_report import RowResult, RunResult, StudyResult, at_chance, in_words, read_result, welch


def study_of(
    values: dict[str, list[float]], claims: tuple[Claim, ...] = (), paper: tuple[float, float] = (1, 2)
) -> Any:
    """Two rows, "a" and "b" compared with "a", with these accuracies per seed, on 1000 images of 10 classes."""
    rows = (
        StudyRow("a", "A", {}, {"tiny": Printed(paper[0])}),
        StudyRow("b", "B", {}, {"tiny": Printed(paper[1])}, against="a"),
    )
    study = Study("s", "S", "Table 0", "?", rows, lambda recipe: "tiny", claims, ("top1",))
    found = {
        row.name: RowResult(
            row, (), tuple(RunResult(i, x, 1.0, 1.0, images=1000) for i, x in enumerate(values[row.name])), (), 10
        )
        for row in rows
    }
    return StudyResult(PlannedStudy(study, "tiny", {}), found), rows[1]


def test_the_interval_is_welchs() -> None:
    generator = np.random.default_rng()
    own, others = generator.normal(1, 2, 5).tolist(), generator.normal(0, 1, 3).tolist()
    expected = stats.ttest_ind(own, others, equal_var=False).confidence_interval(0.95)
    found = welch(own, others)
    assert (found.value, found.low, found.high) == pytest.approx(
        (np.mean(own) - np.mean(others), expected.low, expected.high)
    )


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([70.0, 70.2, 70.1], [72.0, 72.1, 71.9], "yes"),
        ([70.0, 74.0, 72.0], [72.0, 75.0, 71.0], "yes, within noise"),
        ([70.0, 74.0, 72.0], [69.0, 75.0, 71.0], "no, within noise"),
        ([72.0, 72.1, 71.9], [70.0, 70.2, 70.1], "no"),
        ([70.0], [71.0], "yes (one seed)"),
        ([71.0], [70.0], "no (one seed)"),
        ([71.0, 70.0], [70.0, 71.0], "no difference"),
        ([70.0, 70.0], [71.0, 71.0], "yes, within noise"),  # equal seeds tell nothing of their spread
    ],
)
def test_verdicts(a: list[float], b: list[float], verdict: str) -> None:
    result, row = study_of({"a": a, "b": b})
    assert result.agrees(row) == verdict
    opposite, row = study_of({"a": b, "b": a}, paper=(2, 1))
    assert opposite.agrees(row) == verdict


def test_no_verdict_without_runs_or_without_the_paper() -> None:
    result, row = study_of({"a": [], "b": [70.0]})
    assert result.agrees(row) is None
    level, row = study_of({"a": [70.0, 70.1], "b": [72.0, 72.1]}, paper=(5, 5))
    assert level.agrees(row) == "level in the paper"


def test_a_claim_is_as_good_as_its_worst_part() -> None:
    claim = Claim("both", (Comparison("b", "a"), Comparison("b", "a", more=False)))
    result, _ = study_of({"a": [70.0, 70.2], "b": [75.0, 75.2]}, (claim,))
    verdict, said = result.holds(claim)
    assert verdict == "no"
    assert said.startswith("B against A: top-1 % +5.00 (")


@pytest.mark.parametrize(
    ("a", "b", "collapse", "cure"),
    [
        ([10.0, 12.0], [70.0, 71.0], "yes", "yes"),
        ([10.0], [70.0], "yes (one seed)", "yes (one seed)"),
        ([30.0, 31.0], [70.0, 71.0], "partly", "yes"),  # it learns, but far less
        ([70.0, 71.0], [70.0, 72.0], "no", "nothing to cure"),
        ([70.0, 72.0], [70.0, 71.0], "no", "nothing to cure"),
        ([10.0, 11.0], [10.0, 12.0], "yes", "no"),  # no better than guessing is no cure
    ],
)
def test_collapse_and_cure(a: list[float], b: list[float], collapse: str, cure: str) -> None:
    claims = Claim("a learns nothing", (Collapse("a", "b"),)), Claim("b cures it", (Cure("b", "a"),))
    result, _ = study_of({"a": a, "b": b}, claims)
    assert [result.holds(claim)[0] for claim in claims] == [collapse, cure]


def test_chance_is_three_deviations_of_guessing() -> None:
    """10 classes, 1000 images: 10 % and three times sqrt(0.1 x 0.9 / 1000) = 0.949 %; a coin is chance at 2 classes."""
    assert at_chance(12.84, 10, 1000)
    assert not at_chance(12.85, 10, 1000)
    assert at_chance(50.0, 2, 10_000)
    assert not at_chance(60.0, 2, 10_000)


def test_mean_and_standard_deviation_in_words() -> None:
    assert in_words([1.0, 2.0, 3.0]).split() == ["2.00", "±", "1.00"]
    assert in_words([1.234], 1) == "1.2"
    assert in_words([]) == ""


def test_the_loss_of_the_last_epoch_weighs_log_lines_by_their_steps(tmp_path: Path) -> None:
    """Two epochs of 5 steps, a line every 3 steps and at each epoch's end."""
    losses = {3: 9.0, 5: 8.0, 6: 4.0, 9: 2.0, 10: 1.0}
    lines = [f'{{"kind": "train", "step": {s}, "epoch": {s / 5}, "loss": {loss}}}' for s, loss in losses.items()]
    evaluation = '{{"kind": "eval", "step": {0}, "epoch": {1}, "loss": {0}, "top1": {0}, "count": 30, "skipped": 2}}'
    lines += [evaluation.format(step, step // 5) for step in (5, 10)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    recipe = SimpleNamespace(seed=7, schedule=SimpleNamespace(epochs=2))
    result = read_result(SimpleNamespace(folder=tmp_path, recipe=recipe))  # type: ignore[arg-type]
    assert result == RunResult(7, 10.0, pytest.approx((1 * 4 + 3 * 2 + 1 * 1) / 5), 10.0, 30, 2)
