"""What the runs of a study show, and the report of it: paper beside ours, claims, curves, how all of it was made.

First numbers per seed, differences between rows, how certain these are, in words; then the report.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any, Literal, get_args

import numpy as np

from illama.console.text import read_json
from illama.models.cost import multiply_adds, parameters
from illama.recipes import Recipe
from illama.report import Block, Bullets, Code, Figure, Section, Table, Text
from illama.reproduce.figures import Line, Step, StudyPanel, draw_steps, draw_study_curves
from illama.reproduce.study import (
    METRICS,
    Base,
    Claim,
    Collapse,
    Comparison,
    Cure,
    Metric,
    PlannedRun,
    PlannedStudy,
    StudyRow,
)
from illama.training.figures import read_metrics
from illama.training.run_folder import CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE

CONFIDENCE = 0.95  # of the interval that must leave out zero for a difference to be clear
CHANCE_DEVIATIONS = 3  # how far above guessing an accuracy may lie that still counts as having learned nothing
DIGITS: dict[Metric, int] = {"top1": 2, "train_loss": 3, "test_loss": 3}
_NBSP = "\N{NO-BREAK SPACE}"

Verdict = Literal[
    "yes",
    "yes (one seed)",
    "yes, within noise",
    "partly",
    "level in the paper",
    "no difference",
    "nothing to cure",
    "no, within noise",
    "no (one seed)",
    "no",
]
WORST_LAST: tuple[Verdict, ...] = get_args(Verdict)
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


@dataclass(frozen=True)
class Difference:
    """A row's mean less another's.

    Attributes:
        value: The difference.
        low, high: Its 95 % confidence interval; None where a row has a single seed.
    """

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside of the interval."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def verdict(self, *, more: bool) -> Verdict:
        """Whether it has the expected sign."""
        if self.value == 0:
            return "no difference"
        right = (self.value > 0) == more
        if self.low is None:
            return "yes (one seed)" if right else "no (one seed)"
        if self.is_clear:
            return "yes" if right else "no"
        return "yes, within noise" if right else "no, within noise"

    def in_words(self, metric: Metric) -> str:
        """With its interval: +0.52 (-0.10 to +1.14)."""
        digits = DIGITS[metric]
        if self.low is None or self.high is None:
            return f"{self.value:+.{digits}f}"
        return f"{self.value:+.{digits}f} ({self.low:+.{digits}f}{_NBSP}to{_NBSP}{self.high:+.{digits}f})"


def welch(own: Sequence[float], others: Sequence[float]) -> Difference:
    """Difference of two means with Welch's interval: seeds are taken for independent, variances for unequal.

    Values that do not differ at all between seeds say nothing of how far others would lie; the interval then reaches
    to zero.
    """
    value = mean(own) - mean(others)
    if min(len(own), len(others)) < 2:
        return Difference(value)
    parts = [stdev(values) ** 2 / len(values) for values in (own, others)]
    if sum(parts) == 0:
        return Difference(value, min(0.0, value), max(0.0, value))
    from scipy.stats import t

    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (own, others), strict=True)
    )
    half = float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(sum(parts))
    return Difference(value, value - half, value + half)


def at_chance(top1: float, classes: int, images: int) -> bool:
    """Whether an accuracy could come from guessing among equally frequent classes.

    Args:
        top1: Percent.
        classes: How many there are.
        images: How many were answered.
    """
    p = 1 / classes
    return top1 <= 100 * (p + CHANCE_DEVIATIONS * math.sqrt(p * (1 - p) / images))


def in_words(values: Sequence[float], digits: int = 2) -> str:
    """Mean and standard deviation, on one line: 71.25 ± 0.31; the mean alone of one seed."""
    if not values:
        return ""
    spread = f"{_NBSP}±{_NBSP}{stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        seed: Its seed.
        top1: Test accuracy in percent at the softness in force at the end.
        train_loss: Mean training loss of the last epoch, nats.
        test_loss: Test loss at the end, nats.
        images: Test images that were answered.
        skipped: Test images that could not be read.
    """

    seed: int
    top1: float
    train_loss: float
    test_loss: float
    images: int
    skipped: int = 0


@dataclass(frozen=True)
class RowResult:
    """A row with what was measured.

    Attributes:
        row: What it is.
        finished: Its finished runs.
        runs: Their results.
        failed: Why others have none, one text each.
        classes: Number of classes; 0 where nothing has run.
    """

    row: StudyRow
    finished: tuple[PlannedRun, ...]
    runs: tuple[RunResult, ...]
    failed: tuple[str, ...] = ()
    classes: int = 0

    def values(self, metric: Metric) -> list[float]:
        """One value per seed."""
        return [getattr(run, metric) for run in self.runs]

    @property
    def is_at_chance(self) -> bool:
        """Whether no run has learned anything."""
        return all(at_chance(run.top1, self.classes, run.images) for run in self.runs)


@dataclass(frozen=True)
class StudyResult:
    """A study with what was measured."""

    planned: PlannedStudy
    rows: Mapping[str, RowResult]

    def paper_value(self, row: StudyRow, metric: Metric) -> float | None:
        """What the paper prints."""
        printed = row.paper.get(self.planned.setting)
        return None if printed is None else getattr(printed, metric)

    def paper_difference(self, row: StudyRow, metric: Metric) -> float | None:
        """The paper's difference between a row and the one it is compared with."""
        if row.against is None:
            return None
        other = next(other for other in self.planned.rows if other.name == row.against)
        own, others = self.paper_value(row, metric), self.paper_value(other, metric)
        return None if own is None or others is None else own - others

    def difference(self, row: str, against: str, metric: Metric) -> Difference | None:
        """Our difference between two rows; None where one has no run."""
        own, others = self.rows[row].values(metric), self.rows[against].values(metric)
        return welch(own, others) if own and others else None

    def agrees(self, row: StudyRow, metric: Metric = "top1") -> Verdict | None:
        """Whether a row differs from the one it is compared with in the paper's direction."""
        expected = self.paper_difference(row, metric)
        if expected is None or row.against is None:
            return None
        difference = self.difference(row.name, row.against, metric)
        if difference is None:
            return None
        return "level in the paper" if abs(expected) < 1e-9 else difference.verdict(more=expected > 0)

    def holds(self, claim: Claim) -> tuple[Verdict, str] | None:
        """Whether a claim holds, and the numbers; None where runs are missing."""
        judge = {Comparison: self._comparison, Collapse: self._collapse, Cure: self._cure}
        judged = [judge[type(part)](part) for part in claim.parts]  # type: ignore[operator]
        if None in judged:
            return None
        verdicts, numbers = zip(*judged, strict=True)
        return max(verdicts, key=WORST_LAST.index), "; ".join(numbers)

    def _comparison(self, part: Comparison) -> tuple[Verdict, str] | None:
        difference = self.difference(part.row, part.against, part.metric)
        if difference is None:
            return None
        names = f"{self.rows[part.row].row.label} against {self.rows[part.against].row.label}"
        said = f"{names}: {METRICS[part.metric]} {difference.in_words(part.metric)}"
        return difference.verdict(more=part.more), said

    def _collapse(self, part: Collapse) -> tuple[Verdict, str] | None:
        row = self.rows[part.row]
        if not row.runs:
            return None
        said = f"{self._accuracy(part.row)}; guessing {100 / row.classes:.3g}"
        if row.is_at_chance:
            return "yes" if len(row.runs) > 1 else "yes (one seed)", said
        healthy = None if part.healthy is None else self.difference(part.row, part.healthy, "top1")
        if part.healthy is not None and healthy is not None:
            said += f"; {self._accuracy(part.healthy)}"
            if healthy.value < 0 and (healthy.is_clear or healthy.low is None):
                return "partly", said
        return "no", said

    def _cure(self, part: Cure) -> tuple[Verdict, str] | None:
        difference = self.difference(part.row, part.collapsed, "top1")
        if difference is None:
            return None
        said = f"{self._accuracy(part.row)}; {self._accuracy(part.collapsed)}"
        if self.rows[part.row].is_at_chance:
            return "no", said
        verdict = difference.verdict(more=True)
        sick = self.rows[part.collapsed].is_at_chance or verdict in ("yes", "yes (one seed)")
        return verdict if sick else "nothing to cure", said

    def _accuracy(self, row: str) -> str:
        return f"{self.rows[row].row.label} {in_words(self.rows[row].values('top1'))} %"


def collect(planned: PlannedStudy, failed: Mapping[str, str]) -> StudyResult:
    """Read the finished runs of a study.

    Args:
        planned: The study.
        failed: Run folder's name -> why it has no result.
    """
    rows = {}
    for row in planned.rows:
        runs = planned.runs.get(row.name, ())
        finished = tuple(run for run in runs if run.is_finished)
        reasons = tuple(failed[run.folder.name] for run in runs if run.folder.name in failed)
        classes = len(read_json(finished[0].folder / CLASSES_FILE)) if finished else 0
        rows[row.name] = RowResult(row, finished, tuple(map(read_result, finished)), reasons, classes)
    return StudyResult(planned, rows)


def read_result(run: PlannedRun) -> RunResult:
    """The end of a finished run's metrics.jsonl."""
    train, evals = read_metrics(run.folder / METRICS_FILE)
    epochs = run.recipe.schedule.epochs
    steps = [0, *train["step"]]
    last = [at for at, epoch in enumerate(train["epoch"]) if epoch > epochs - 1 + 1e-9]
    weights = [steps[at + 1] - steps[at] for at in last]  # a log line is the mean since the one before it
    loss = sum(weight * train["loss"][at] for weight, at in zip(weights, last, strict=True)) / sum(weights)
    counts = (int(evals[key][-1]) for key in ("count", "skipped"))
    return RunResult(run.recipe.seed, evals["top1"][-1], loss, evals["loss"][-1], *counts)


def environments(results: Sequence[StudyResult]) -> list[dict[str, Any]]:
    """Versions and hardware of all finished runs, each kind once, without what differs from run to run."""
    kinds = []
    folders = {run.folder for result in results for row in result.rows.values() for run in row.finished}
    for folder in sorted(folders):
        environment = read_json(folder / ENVIRONMENT_FILE)
        for key in ("command", "working_folder"):
            environment.pop(key, None)
        if environment not in kinds:
            kinds.append(environment)
    return kinds


def study_to_dict(result: StudyResult) -> dict[str, Any]:
    """Plain values for JSON."""
    study, setting = result.planned.study, result.planned.setting
    rows = [
        {
            "name": row.name,
            "label": row.label,
            "paper": asdict(row.paper[setting]) if setting in row.paper else None,
            "runs": [asdict(run) for run in result.rows[row.name].runs],
            "folders": [run.folder.name for run in result.rows[row.name].finished],
            "commands": [run_command(run) for run in result.planned.runs.get(row.name, ())],
            "failed": list(result.rows[row.name].failed),
            "against": row.against,
            "agrees": result.agrees(row),
        }
        for row in result.planned.rows
    ]
    claims = [{"claim": claim.text, "found": result.holds(claim)} for claim in study.claims]
    return {"study": study.name, "source": study.source, "setting": setting, "rows": rows, "claims": claims}


def run_command(run: PlannedRun) -> str:
    """What trains a run by hand, for a shell."""
    return shlex.join(["illama", *run.words, "--out", f"runs/{run.folder.name}"])


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
        draw_study_curves(panels),
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
