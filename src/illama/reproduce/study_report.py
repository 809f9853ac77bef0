"""The report of studies: paper beside ours, claims, curves, and how all of it was made."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from illama.errors import UserError
from illama.models.complexity import multiply_adds, parameters
from illama.recipes import Recipe
from illama.report import Block, Bullets, Code, Document, Figure, Section, Table, Text, write_document
from illama.reproduce.figures import Line, Panel, Step, draw_curves, draw_steps
from illama.reproduce.plan import Base, PlannedRun
from illama.reproduce.results import (
    RowResult,
    StudyResult,
    difference_in_words,
    environments,
    in_words,
    to_dict,
)
from illama.reproduce.study import METRICS, Metric, Row
from illama.training.figures import read_metrics
from illama.training.run_folder import METRICS_FILE

_DIGITS: dict[Metric, int] = {"top1": 2, "train_loss": 3, "test_loss": 3}
_CURVES = (
    ("training loss", "cross-entropy (nats)", "train", "loss"),
    ("test loss", "cross-entropy (nats)", "eval", "loss"),
    ("test accuracy", "top-1 (%)", "eval", "top1"),
)
_HOW_TO_READ = (
    "Ours is the mean over seeds ± standard deviation, top-1 at the end of training (no best epoch is picked). The "
    "difference is taken to the row that is named, with its 95 % confidence interval (Welch); the direction is clear "
    "where that interval leaves out zero."
)


def study_section(result: StudyResult, extra: Sequence[Block] = ()) -> Section:
    """One study: question, table, claims, pictures, notes.

    Args:
        result: What was measured.
        extra: What follows the pictures.
    """
    study = result.planned.study
    blocks: list[Block] = [Text(f"{study.question} ({study.source}.)"), Text(_progress(result)), Text(_HOW_TO_READ)]
    blocks.append(results_table(result))
    claims = _claims(result)
    if claims is not None:
        blocks.append(claims)
    blocks += _pictures(result)
    blocks += extra
    if study.notes:
        blocks.append(Bullets(study.notes))
    return Section(study.title, tuple(blocks))


def results_table(result: StudyResult, *, brief: bool = False) -> Table:
    """Paper | ours | differences | direction, and the losses; `brief` leaves out what a terminal has no room for."""
    planned = result.planned
    columns = {"row": [row.label for row in planned.rows]}
    for metric in planned.study.metrics[: 1 if brief else None]:
        name, digits = METRICS[metric], 1 if metric == "top1" else 3
        printed = [_number(result.paper_value(row, metric), digits) for row in planned.rows]
        columns[f"{name}, paper ({planned.setting})"] = printed
        columns[f"{name}, ours"] = [_ours(result.rows[row.name], metric) for row in planned.rows]
        if metric == "top1":
            expected = [result.paper_difference(row, metric) for row in planned.rows]
            columns["difference, paper"] = ["" if value is None else f"{value:+.1f}" for value in expected]
            columns["difference, ours"] = [_difference(result, row) for row in planned.rows]
            if not brief:
                columns["to"] = [_against(result, row) for row in planned.rows]
            columns["direction agrees?"] = [result.agrees(row) or "" for row in planned.rows]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(tuple(shown), tuple(zip(*shown.values(), strict=True)), f"{planned.study.source}: paper and ours")


def _ours(found: RowResult, metric: Metric) -> str:
    if found.runs:
        return in_words(found.values(metric), _DIGITS[metric])
    if found.row.edits is None:
        return "quoted, not run" if metric == "top1" else ""
    return "failed" if found.failed else "not run"


def _difference(result: StudyResult, row: Row) -> str:
    found = None if row.against is None else result.difference(row.name, row.against, "top1")
    return "" if found is None else difference_in_words(found, "top1")


def _against(result: StudyResult, row: Row) -> str:
    label = next((each.label for each in result.planned.rows if each.name == row.against), "")
    return label.removeprefix("+ ")


def _claims(result: StudyResult) -> Table | None:
    rows = []
    for claim in result.planned.study.claims:
        found = result.holds(claim)
        rows.append((claim.text, *(("not run", "") if found is None else found)))
    return Table(("what the paper says", "holds here?", "measured"), tuple(rows), "Claims") if rows else None


def _progress(result: StudyResult) -> str:
    planned = result.planned.runs.values()
    done = sum(len(result.rows[name].runs) for name in result.planned.runs)
    total = sum(map(len, planned))
    failed = [reason for found in result.rows.values() for reason in found.failed]
    text = f"{done} of {total} runs are finished."
    return text + "".join(f" Failed: {reason}." for reason in dict.fromkeys(failed))


def _pictures(result: StudyResult) -> Iterator[Figure]:
    study = result.planned.study
    if not any(found.runs for found in result.rows.values()):
        return
    panels = [Panel(title, label, tuple(_lines(result, kind, key))) for title, label, kind, key in _CURVES]
    yield Figure(
        f"{study.name}-curves",
        draw_curves(panels),
        f"Curves of training loss, test loss and accuracy of the rows of {study.name}",
        "Mean over seeds, band: one standard deviation. A dotted line and a dot mark the epoch where a row's soft mask "
        "has become causal.",
    )
    if any(result.paper_value(row, "top1") is not None for row in result.planned.rows):
        steps = [
            Step(row.label, result.paper_value(row, "top1"), tuple(result.rows[row.name].values("top1")))
            for row in result.planned.rows
        ]
        yield Figure(
            f"{study.name}-steps",
            draw_steps(steps, f"paper, {result.planned.setting}", "ours"),
            f"Accuracy of each row of {study.name}: paper and ours",
            "Top-1 in percent. Small dots are single seeds, whiskers one standard deviation.",
        )


def _lines(result: StudyResult, kind: str, key: str) -> Iterator[Line]:
    for row in result.planned.rows:
        runs = result.rows[row.name].finished
        if not runs:
            continue
        columns = [read_metrics(run.folder / METRICS_FILE)[kind == "eval"] for run in runs]
        seeds = tuple(tuple(column[key]) for column in columns)
        yield Line(row.label, tuple(columns[0]["epoch"]), seeds, _switch(runs[0].recipe))


def _switch(recipe: Recipe) -> float | None:
    """The epoch where the mask becomes causal."""
    softness = recipe.schedule.softness
    soft = recipe.model.mask != "none" and softness.mode == "soft" and softness.value > 0
    return softness.cutoff_epochs if soft and 0 < softness.cutoff_epochs <= recipe.schedule.epochs else None


def how_it_was_made(results: Sequence[StudyResult], base: Base, runs: Sequence[PlannedRun], command: str) -> Section:
    """Commands, recipe, versions, hardware."""
    recipe = base.common
    blocks: list[Block] = [
        Text("One command trains, continues and reports; what is finished is not trained again:"),
        Code(command),
        Text(_about(recipe)),
        Bullets(tuple(_environment(found) for found in environments(results))),
        Text("Each run by hand:"),
        Code("\n".join(shlex.join(["illama", *run.words]) for run in runs)),
    ]
    return Section("How this was made", tuple(block for block in blocks if block != Bullets(())))


def write_results(sections: Sequence[Section], records: dict[str, Any], title: str, folder: Path) -> list[Path]:
    """Write report.html, report.md, their pictures and results.json.

    Raises:
        UserError: The folder cannot be written to.
    """
    lead = "The paper's tables and figures beside our own runs, made by illama (arXiv 2404.06773)."
    written = write_document(Document(title, lead, tuple(sections)), folder)
    path = folder / "results.json"
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(json.dumps(records, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror}; give another folder with --out") from error
    return [*written, path]


def records(results: Sequence[StudyResult], base: Base, command: str) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "command": command,
        "recipe": base.common.to_dict(),
        "environments": environments(results),
        "studies": [to_dict(result) for result in results],
    }


def _about(recipe: Recipe) -> str:
    model, data = recipe.model, recipe.data
    limit = "" if data.max_train_images is None else f", {data.max_train_images} training images per seed"
    return (
        f"Recipe `{recipe.name}`: {model.embed_dim} wide, {model.depth} deep, {model.num_heads} heads, patches of "
        f"{model.patch_size} px, {parameters(model) / 1e6:.2f} M parameters, {multiply_adds(model) / 1e9:.3g} G "
        f"multiply-adds; {recipe.schedule.epochs} epochs of batches of {recipe.train.total_batch}{limit}, "
        f"{recipe.train.precision}."
    )


def _environment(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version is not None)
    return (
        f"{found['processor']}, {found['cpu_cores']} cores, {found['torch_threads']} threads per run, device "
        f"{found['device']}; {versions}; {found['platform']}; revision {found['git_revision']}"
    )


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
