"""Whole studies at toy scale: trained, reported, and not trained again."""

from __future__ import annotations

import html
import json
from pathlib import Path

import pytest

from illama.errors import UserError
from illama.reproduce.command import Wanted, make_plan, reproduce
from illama.reproduce.runner import Outcome
from tests.reproduce.conftest import TOY, InlineSlot

REPORTS = ("report.html", "report.md", "results.json")


def digits(tmp_path: Path, *names: str, seeds: int = 1, overrides: tuple[str, ...] = ()) -> Wanted:
    return Wanted(names, (*TOY, *overrides), data="digits", seeds=seeds, devices=("cpu",), out=tmp_path / "out")


def test_roadmap_and_soft_mask_on_digits(slot: InlineSlot, tmp_path: Path) -> None:
    plan = make_plan(digits(tmp_path, "roadmap", "soft-mask"))
    results, written, outcome = reproduce(plan)
    assert outcome == Outcome(trained=12)
    assert [len(row.runs) for row in results[0].rows.values()] == [0] + 11 * [1]
    report = (tmp_path / "out" / "roadmap-soft-mask" / "report.html").read_text()
    for row in (*results[0].planned.rows, *results[1].planned.rows):
        assert html.escape(row.label) in report
    assert {path.name for path in written} >= {*REPORTS, "roadmap-curves.svg", "soft-mask-curves.svg"}
    saved = json.loads((plan.report_dir / "results.json").read_text())
    top1 = saved["studies"][0]["rows"][1]["runs"][0]["top1"]
    last = (plan.runs[0].folder / "metrics.jsonl").read_text().splitlines()
    assert top1 == next(json.loads(line)["top1"] for line in reversed(last) if '"eval"' in line)
    before = {name: (plan.report_dir / name).read_bytes() for name in REPORTS}
    slot.trained.clear()
    _, _, again = reproduce(make_plan(plan.wanted))
    assert (slot.trained, again) == ([], Outcome(finished_before=12))
    assert {name: (plan.report_dir / name).read_bytes() for name in REPORTS} == before


def test_a_study_of_another_name_takes_over_the_runs(slot: InlineSlot, tmp_path: Path) -> None:
    reproduce(make_plan(digits(tmp_path, "soft-mask")))
    slot.trained.clear()
    reproduce(make_plan(digits(tmp_path, "mixing")))
    assert [folder.name.split("-")[0] for folder in slot.trained] == [
        *("mixing_0.8_1", "mixing_0.5_0.4", "mixing_0.3_0.3", "mixing_0.2_0.2")
    ]


@pytest.mark.parametrize("name", ["collapse", "mask-modes", "peers"])
def test_the_other_studies_on_digits(name: str, slot: InlineSlot, tmp_path: Path) -> None:
    results, written, outcome = reproduce(make_plan(digits(tmp_path, name, seeds=2 if name == "peers" else 1)))
    assert not outcome.failed
    assert all(row.runs for row in results[0].rows.values())
    assert f"{name}-curves.svg" in {path.name for path in written}


def test_a_part_of_cifar10(slot: InlineSlot, tmp_path: Path, shared_data: Path) -> None:
    data = str(shared_data / "cifar10")
    overrides = (*TOY, "train.precision=float32", "data.max_train_images=32", "data.max_eval_images=10")
    wanted = Wanted(("roadmap", "soft-mask"), overrides, data, "cifar10_micro", 1, ("cpu",), out=tmp_path / "out")
    results, _, outcome = reproduce(make_plan(wanted))
    assert outcome == Outcome(trained=12)
    assert all(row.runs for result in results for row in result.rows.values() if row.row.edits is not None)


def test_a_run_that_fails_stops_no_other(slot: InlineSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network with RMSNorm meets a loss that is not finite."""
    from illama.training.loop import Run

    step = Run._step

    def failing(self: Run, batches) -> float:  # type: ignore[no-untyped-def]
        if self.recipe.model.norm == "rms" and self.recipe.model.cls_position == "first":
            raise UserError("the loss is not finite at step 0")
        return step(self, batches)

    monkeypatch.setattr(Run, "_step", failing)
    plan = make_plan(digits(tmp_path, "roadmap"))
    results, _, outcome = reproduce(plan)
    rows = results[0].rows
    assert (outcome.trained, len(outcome.failed)) == (8, 3)
    assert rows["llama_norm"].failed == ("the loss is not finite at step 0",)
    assert results[0].agrees(rows["llama_attention"].row) is None
    report = (plan.report_dir / "report.md").read_text()
    assert "8 of 11 runs are finished. Failed: the loss is not finite at step 0." in report
    monkeypatch.setattr(Run, "_step", step)
    slot.trained.clear()
    _, _, again = reproduce(make_plan(plan.wanted))
    assert (again.trained, again.finished_before) == (3, 8)
    assert len(slot.trained) == 3


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"names": ()}, "which study"),
        ({"names": ("roadmaps",)}, "unknown study 'roadmaps'; did you mean roadmap"),
        ({"names": ("roadmap",), "seeds": 0}, "--seeds must be at least 1; got 0"),
        ({"names": ("roadmap",), "jobs": 0}, "--jobs must be at least 1; got 0"),
    ],
)
def test_wishes_that_cannot_be(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wanted(**wanted)  # type: ignore[arg-type]
