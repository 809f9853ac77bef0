"""The report of studies: paper beside ours, claims, curves, and how all of it was made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from illama.models.cost import multiply_adds, parameters
from illama.recipes import Recipe
from illama.report import Block, Bullets, Code, Figure, Section, Table, Text
from illama.reproduce.figures import Line, Step, StudyPanel, draw_curves, draw_steps
from illama.reproduce.results import DIGITS, StudyResult, environments, in_words
from illama.reproduce.results import command as run_command
from illama.reproduce.study import METRICS, Base, Metric, PlannedRun, StudyRow
from illama.training.figures import read_metrics
from illama.training.run_folder import METRICS_FILE

_CURVES = (
    ("training loss", "cross-entropy (nats)", "train", "loss"),
    ("test loss", "cross-entropy (nats)", "eval", "loss"),
    ("test accuracy", "top-1 (%)", "eval", "top1"),
)
_HOW_TO_READ = (
    "Ours is the mean over seeds ± standard deviation, top-1 at the end of training (no best epoch is picked). The "
    "difference is taken to the row that is named, with its 95 % confidence interval (Welch: seeds are taken for "
    "independent); the direction is clear where that interval leaves out zero. The interval tells how seeds differ, "
    "not how another test set would."
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
    if study.claims:
        claims = tuple((claim.text, *(result.holds(claim) or ("no runs", ""))) for claim in study.claims)
        blocks.append(Table(("claim", "holds here?", "measured"), claims, "Claims"))
    blocks += _pictures(result)
    blocks += extra
    if study.notes:
        blocks.append(Bullets(study.notes))
    return Section(study.title, tuple(blocks))


def results_table(result: StudyResult, *, brief: bool = False) -> Table:
    """Paper | ours | differences | direction, and the losses; `brief` leaves out what a terminal has no room for."""
    planned = result.planned
    labels = {row.name: row.label for row in planned.rows}
    columns = {"row": [_label(result, row) for row in planned.rows]}
    for metric in planned.study.metrics[: 1 if brief else None]:
        name, digits = METRICS[metric], 1 if metric == "top1" else 3
        printed = [result.paper_value(row, metric) for row in planned.rows]
        columns[f"{name}, paper ({planned.setting})"] = ["" if x is None else f"{x:.{digits}f}" for x in printed]
        columns[f"{name}, ours"] = [_ours(result, row, metric) for row in planned.rows]
        agrees: list[str] = [result.agrees(row, metric) or "" for row in planned.rows]
        if metric != "top1":
            columns[f"{name}: direction agrees?"] = agrees
            continue
        expected = [result.paper_difference(row, metric) for row in planned.rows]
        columns["difference, paper"] = ["" if x is None else f"{x:+.1f}" for x in expected]
        measured = [row.against and result.difference(row.name, row.against, metric) for row in planned.rows]
        columns["difference, ours"] = [difference.in_words(metric) if difference else "" for difference in measured]
        if not brief:
            against = [labels.get(row.against or "", "").removeprefix("+ ") for row in planned.rows]
            columns["compared with"] = against
        columns["direction agrees?"] = agrees
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    return Table(tuple(shown), tuple(zip(*shown.values(), strict=True)), f"{planned.study.source}: paper and ours")


def _label(result: StudyResult, row: StudyRow) -> str:
    """A row's name, and whose runs it shares."""
    runs = result.planned.runs.get(row.name)
    for other in result.planned.rows:
        if other.name == row.name or runs is None:
            return row.label
        if result.planned.runs.get(other.name) and result.planned.runs[other.name][0].folder == runs[0].folder:
            return f"{row.label} (the runs of {other.label})"
    return row.label


def _ours(result: StudyResult, row: StudyRow, metric: Metric) -> str:
    ours, planned = result.rows[row.name], len(result.planned.runs.get(row.name, ()))
    if ours.runs:
        part = "" if len(ours.runs) == planned else f" ({len(ours.runs)} of {planned} seeds)"
        return in_words(ours.values(metric), DIGITS[metric]) + part
    if row.edits is None:
        return "quoted, not run" if metric == "top1" else ""
    return "failed" if ours.failed else "not run"


def _progress(result: StudyResult) -> str:
    """How much of it there is, and on how many images it stands."""
    total = len({run.folder for runs in result.planned.runs.values() for run in runs})
    done = len({run.folder for row in result.rows.values() for run in row.finished})
    images = sorted({run.images for row in result.rows.values() for run in row.runs})
    skipped = max((run.skipped for row in result.rows.values() for run in row.runs), default=0)
    text = f"{done} of {total} runs are finished."
    if images:
        text += f" Accuracies are of {' to '.join(map(str, images))} test images (one is {100 / images[0]:.2g} points)."
    if skipped:
        text += f" {skipped} test images could not be read."
    for row in result.rows.values():
        text += "".join(f" {row.row.label} failed: {reason}." for reason in dict.fromkeys(row.failed))
    return text


def _pictures(result: StudyResult) -> Iterator[Figure]:
    study = result.planned.study
    if not any(row.runs for row in result.rows.values()):
        return
    panels = [StudyPanel(title, label, tuple(_lines(result, kind, key))) for title, label, kind, key in _CURVES]
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
        epochs = columns[0]["epoch"]  # other seeds may have lost other unreadable images, and count other steps
        seeds = tuple(tuple(np.interp(epochs, column["epoch"], column[key]).tolist()) for column in columns)
        switch = runs[0].recipe.schedule.softness.causal_from
        yield Line(row.label, tuple(epochs), seeds, switch if switch is not None and switch <= epochs[-1] else None)


def how_it_was_made(results: Sequence[StudyResult], base: Base, runs: Sequence[PlannedRun], command: str) -> Section:
    """Commands, recipe, versions, hardware."""
    made_on = tuple(_about(environment) for environment in environments(results))
    blocks: list[Block] = [
        Text("One command trains, continues and reports; what is finished is not trained again:"),
        Code(command),
        Text(_about_recipe(base.common)),
        *([Bullets(made_on)] if made_on else []),
        Text("Each run by hand, in the folder of the study:"),
        Code("\n".join(map(run_command, runs))),
    ]
    return Section("How this was made", tuple(blocks))


def _about_recipe(recipe: Recipe) -> str:
    model, data = recipe.model, recipe.data
    limit = "" if data.max_train_images is None else f", {data.max_train_images} training images per seed"
    return (
        f"Recipe `{recipe.name}`: {model.embed_dim} wide, {model.depth} deep, {model.num_heads} heads, patches of "
        f"{model.patch_size} px, {parameters(model) / 1e6:.2f} M parameters, {multiply_adds(model) / 1e9:.3g} G "
        f"multiply-adds; {recipe.schedule.epochs} epochs of batches of {recipe.train.total_batch}{limit}, "
        f"{recipe.train.precision}."
    )


def _about(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {text}" for name, text in environment["versions"].items() if text is not None)
    return (
        f"{environment['processor']}, {environment['cpu_cores']} cores, {environment['torch_threads']} threads per "
        f"run, device {environment['device']}; {versions}; {environment['platform']}; revision "
        f"{environment['git_revision']}"
    )
