"""Whole studies at toy scale: trained, reported, and not trained again."""

from __future__ import annotations

import html
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from illama.errors import UserError
from illama.recipes import load_recipe
from illama.reproduce.command import Wanted, make_plan, reproduce
from illama.reproduce.runner import Outcome
from illama.system.lock import RunLock
from illama.training.loop import Run
from tests.reproduce.conftest import TOY, InlineSlot

REPORTS = ("report.html", "report.md", "results.json")


def digits(tmp_path: Path, *names: str, seeds: int = 1, overrides: tuple[str, ...] = ()) -> Wanted:
    return Wanted(names, (*TOY, *overrides), data="digits", seeds=seeds, devices=("cpu",), out=tmp_path / "out")


def test_studies_on_digits_share_their_runs(slot: InlineSlot, tmp_path: Path) -> None:
    """All of them, one after the other, in one folder: what a study before has trained is not trained again."""
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
    assert reproduce(make_plan(plan.wanted))[2] == Outcome(finished_before=12)
    assert slot.trained == []
    assert {name: (plan.report_dir / name).read_bytes() for name in REPORTS} == before

    reproduce(make_plan(digits(tmp_path, "mixing")))
    assert [folder.name.split("-")[0] for folder in slot.trained] == [
        *("mixing_0.5_0.4", "mixing_0.3_0.3", "mixing_0.2_0.2")
    ]
    for name in ("collapse", "mask-modes"):
        results, written, outcome = reproduce(make_plan(digits(tmp_path, name)))
        assert outcome.finished_before > 0
        assert not outcome.failed
        assert all(row.runs for row in results[0].rows.values())
        assert f"{name}-curves.svg" in {path.name for path in written}


def test_a_part_of_cifar10(slot: InlineSlot, tmp_path: Path, shared_data: Path) -> None:
    data = str(shared_data / "cifar10")
    overrides = (*TOY, "train.precision=float32", "data.max_train_images=32", "data.max_eval_images=10")
    wanted = Wanted(("peers",), overrides, data, "cifar10_micro", 1, ("cpu",), out=tmp_path / "out")
    results, _, outcome = reproduce(make_plan(wanted))
    assert outcome == Outcome(trained=3)
    assert all(row.runs for row in results[0].rows.values())


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
        ({"names": ("roadmap",), "seeds": 0}, "--seeds .* at least 1; got 0"),
        ({"names": ("roadmap",), "jobs": 0}, "--jobs .* at least 1; got 0"),
        ({"names": ("roadmap",), "weights": {"vit": Path("v")}}, "--init-from vit=...: .* from scratch"),
        ({"names": ("cifar",), "weights": {"vitt": Path("v")}}, "--init-from vitt=...: allowed: illama, vit"),
        ({"names": ("complexity",), "data": "digits"}, "complexity only counts"),
    ],
)
def test_wishes_that_cannot_be(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Wanted(**wanted)  # type: ignore[arg-type]


def test_one_compiled_step_serves_all_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[torch.fx.GraphModule] = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    torch.compiler.reset()
    edits = ("train.compile=true", "model.drop_path=0.1", "augment.mixup=0.1", "schedule.softness.cutoff_epochs=2")
    for seed in range(2):
        recipe = load_recipe("digits_micro", [*TOY, *edits, f"seed={seed}"])
        run = Run(recipe, Path("nowhere"), torch.device("cpu"), None)
        batches = run.parts.train_loader.batches()
        for step in range(run.parts.schedules.total_steps):
            run.state.progress.step = step
            run._step(batches)
        batches.close()
    torch.compiler.reset()
    assert len(graphs) == 1
