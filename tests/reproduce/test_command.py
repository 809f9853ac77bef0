"""Whole studies at toy scale: trained, reported, and not trained again."""

from __future__ import annotations

import html
import json
import shlex
from pathlib import Path

import pytest

from illama.errors import UserError
from illama.reproduce.command import Wanted, make_plan, reproduce
from illama.reproduce.runner import Outcome
from illama.system.lock import RunLock
from illama.training.loop import Run
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
    """Three do: by what the user can mend, and by what we did not foresee."""
    step = Run._step
    errors: list[Exception] = [RuntimeError("CUDA out of memory. Tried\nmuch"), UserError("the loss is not finite")]

    def failing(self: Run, batches) -> float:  # type: ignore[no-untyped-def]
        if self.parts.recipe.model.norm == "rms" and self.parts.recipe.model.cls_position == "first":
            raise errors[self.parts.recipe.model.mask == "none"]
        return step(self, batches)

    monkeypatch.setattr(Run, "_step", failing)
    plan = make_plan(digits(tmp_path, "roadmap"))
    results, _, outcome = reproduce(plan)
    rows = results[0].rows
    assert (outcome.trained, len(outcome.failed)) == (8, 3)
    assert rows["llama_norm"].failed == ("the loss is not finite",)
    assert rows["llama_attention"].failed == ("RuntimeError: CUDA out of memory. Tried",)
    assert results[0].agrees(rows["llama_attention"].row) is None
    report = (plan.report_dir / "report.md").read_text()
    assert "8 of 11 runs are finished." in report
    assert "+ LLaMA norm (RMSNorm) failed: the loss is not finite." in report
    monkeypatch.setattr(Run, "_step", step)
    slot.trained.clear()
    _, _, again = reproduce(make_plan(plan.wanted))
    assert (again.trained, again.finished_before) == (3, 8)
    assert len(slot.trained) == 3


def test_a_run_from_trained_weights_goes_on(slot: InlineSlot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A begun run has its weights, and refuses others."""
    _, _, outcome = reproduce(make_plan(digits(tmp_path, "peers")))
    assert outcome.trained == 3
    vit, _, illama = (run.folder for run in make_plan(digits(tmp_path, "peers")).runs)
    wanted = Wanted(
        ("cifar",),
        TOY,
        "digits",
        "digits_micro",
        1,
        ("cpu",),
        out=tmp_path / "out",
        weights={"vit": vit, "illama": illama},
    )
    step = Run._step

    def failing(self: Run, batches) -> float:  # type: ignore[no-untyped-def]
        if self.state.progress.step == 4:
            raise UserError("here it ends")
        return step(self, batches)

    monkeypatch.setattr(Run, "_step", failing)
    _, _, outcome = reproduce(make_plan(wanted))
    assert set(outcome.failed.values()) == {"here it ends"}
    monkeypatch.setattr(Run, "_step", step)
    results, _, outcome = reproduce(make_plan(wanted))
    assert outcome == Outcome(trained=3)
    assert all(row.runs for row in results[0].rows.values())


def test_more_seeds_are_added_to_those_that_are_there(slot: InlineSlot, tmp_path: Path) -> None:
    reproduce(make_plan(digits(tmp_path, "peers")))
    slot.trained.clear()
    results, _, outcome = reproduce(make_plan(digits(tmp_path, "peers", seeds=2)))
    assert outcome == Outcome(trained=3, finished_before=3)
    assert all(folder.name.endswith("-seed1") for folder in slot.trained)
    assert [run.seed for run in results[0].rows["vit"].runs] == [0, 1]


def test_one_command_at_a_time_in_a_folder(slot: InlineSlot, tmp_path: Path) -> None:
    wanted = digits(tmp_path, "peers")
    with RunLock(tmp_path / "out"), pytest.raises(UserError, match="is being trained by"):
        reproduce(make_plan(wanted))
    assert slot.trained == []


def test_the_same_command_makes_the_same_plan(tmp_path: Path) -> None:
    """The command that the report quotes, typed into a shell."""
    wanted = digits(tmp_path, "peers", "roadmap", seeds=2, overrides=("data.mean=[0.25]",))
    words = shlex.split(wanted.command)
    assert words[:4] == ["illama", "reproduce", "peers", "roadmap"]
    options = {words[at]: words[at + 1] for at in range(len(words)) if words[at].startswith("--")}
    again = Wanted(
        tuple(words[2:4]),
        tuple(word for word in words if "=" in word),
        options["--data"],
        seeds=int(options["--seeds"]),
        devices=(options["--device"],),
        out=wanted.out,
    )
    assert make_plan(again).runs == make_plan(wanted).runs


def test_edits_have_a_folder_of_their_own(tmp_path: Path) -> None:
    plain = make_plan(Wanted(("peers",), data="digits"))
    edited = make_plan(Wanted(("peers",), TOY, data="digits"))
    assert plain.out == Path("runs/reproduce/digits_micro")
    assert edited.out.parent == plain.out.parent
    assert edited.out.name.startswith("digits_micro-")
    assert make_plan(Wanted(("peers", "peers"), data="digits")).report_dir == plain.report_dir


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"names": ()}, "which study"),
        ({"names": ("roadmaps",)}, "unknown study 'roadmaps'; did you mean roadmap"),
        ({"names": ("roadmap",), "seeds": 0}, "--seeds must be at least 1; got 0"),
        ({"names": ("roadmap",), "jobs": 0}, "--jobs must be at least 1; got 0"),
        (
            {"names": ("roadmap",), "weights": {"vit": Path("v")}},
            "--init-from vit=...: these studies start from scratch",
        ),
        ({"names": ("cifar",), "weights": {"vitt": Path("v")}}, "--init-from vitt=...: allowed: illama, vit"),
        ({"names": ("complexity",), "data": "digits"}, "complexity only counts"),
    ],
)
def test_wishes_that_cannot_be(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wanted(**wanted)  # type: ignore[arg-type]
