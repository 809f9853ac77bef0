"""The command's work: plan, train what is missing, report; or only say how long it would take."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from illama.errors import UserError
from illama.models.config import ModelConfig
from illama.models.variants import ROADMAP
from illama.registry import closest
from illama.report import Block, Document, Section, Text, write_document
from illama.reproduce.complexity import complexity_records, complexity_sections
from illama.reproduce.runner import Estimate, Outcome, estimate, open_slots, train_all
from illama.reproduce.studies import COMPLEXITY, NAMES, STUDIES
from illama.reproduce.study import Base, PlannedRun, PlannedStudy, all_runs, choose_base, plan_studies
from illama.reproduce.study_report import (
    StudyResult,
    collect,
    environments,
    how_it_was_made,
    study_section,
    study_to_dict,
)
from illama.system.files import make_folder
from illama.system.lock import RunLock

COLLAPSE_IMAGES = 64
_COLLAPSE_LABELS = {
    "llama_attention": "class token first, causal",
    "ps_cls": "PS [cls]",
    "modified_causal": "modified mask",
}


@dataclass(frozen=True)
class Wanted:
    """What a command asks for.

    Attributes:
        names: Studies.
        overrides: Recipe edits that all rows share.
        data: Where the images are, or a data set's name.
        recipe: What the rows edit; that of the data set when None.
        seeds: Runs per row.
        devices: Names; every CUDA GPU, or the best there is, when empty.
        jobs: Runs at a time on each device.
        out: Folder; runs/reproduce/<recipe> when None.
        weights: Start weights by the rows' words.
    """

    names: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    data: str | None = None
    recipe: str | None = None
    seeds: int = 3
    devices: tuple[str, ...] = ()
    jobs: int = 1
    out: Path | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError(
                f"which study? known: {', '.join(NAMES)}; for example: illama reproduce roadmap --data digits"
            )
        for name in self.names:
            if name not in NAMES:
                raise UserError(f"unknown study {name!r}; {closest(name, NAMES)}")
        object.__setattr__(self, "names", tuple(dict.fromkeys(self.names)))
        words = {row.weights for name in self.names if name in STUDIES for row in STUDIES[name].rows} - {None}
        for word in self.weights.keys() - words:
            allowed = f"allowed: {', '.join(sorted(map(str, words)))}" if words else "these studies start from scratch"
            raise UserError(f"--init-from {word}=...: {allowed}")
        if self.names == (COMPLEXITY,) and (self.overrides or self.data or self.recipe or self.devices):
            raise UserError("complexity only counts: it takes no data, recipe, device or key=value; give --out alone")
        for name, value in (("--seeds", self.seeds), ("--jobs", self.jobs)):
            if value < 1:
                raise UserError(f"{name} must be at least 1; got {value}")

    @property
    def command(self) -> str:
        """What makes the same report on the same machine, wherever it is written."""
        base = [] if self.recipe is None else ["--recipe", self.recipe]
        data = [] if self.data is None else ["--data", self.data]
        weights = [word for key, path in self.weights.items() for word in ("--init-from", f"{key}={path}")]
        jobs = [] if self.jobs == 1 else ["--jobs", str(self.jobs)]
        device = ["--device", *self.devices] if self.devices else []
        seeds = [] if self.names == (COMPLEXITY,) else ["--seeds", str(self.seeds)]
        words = [*self.names, *self.overrides, *base, *data, *seeds, *weights, *device, *jobs]
        return shlex.join(["illama", "reproduce", *words])


@dataclass(frozen=True)
class Plan:
    """A command's runs.

    Attributes:
        wanted: The command.
        base: What all rows edit; None where nothing is trained.
        studies: The studies with runs.
        runs: Every run once.
        out: Where runs and reports go.
    """

    wanted: Wanted
    base: Base | None
    studies: tuple[PlannedStudy, ...]
    runs: tuple[PlannedRun, ...]
    out: Path

    @property
    def report_dir(self) -> Path:
        """Folder of the report."""
        return self.out / "-".join(self.wanted.names)


def make_plan(wanted: Wanted) -> Plan:
    """Every run of the studies; nothing is written.

    Raises:
        UserError: A study, recipe, override or start weight cannot be.
    """
    studies = [STUDIES[name] for name in wanted.names if name in STUDIES]
    if not studies:
        return Plan(wanted, None, (), (), wanted.out or Path("runs/reproduce"))
    base = choose_base(studies, wanted.recipe, wanted.overrides, wanted.data)
    out = wanted.out or Path("runs/reproduce") / base.folder_name
    planned = plan_studies(studies, base, wanted.seeds, out, wanted.weights)
    return Plan(wanted, base, planned, all_runs(planned), out)


def reproduce(plan: Plan) -> tuple[list[StudyResult], list[Path], Outcome]:
    """Train what is not finished, and write the report.

    Returns:
        The results, the files of the report, and what became of the runs.

    Raises:
        UserError: Data or device cannot be used, or the folder cannot be written to.
        Stopped: A signal asked for the end; the same command goes on.
    """
    outcome = Outcome()
    if plan.runs:
        devices = choose_devices(plan.wanted.devices)
        check(plan)
        with RunLock(plan.out), open_slots(devices, plan.wanted.jobs) as slots:
            outcome = train_all(plan.runs, slots, plan.out)
    results = [collect(planned, outcome.failed) for planned in plan.studies]
    sections: list[Section] = []
    records: dict[str, Any] = {}
    for name in plan.wanted.names:
        if name == COMPLEXITY:
            sections += complexity_sections()
        else:
            result = next(result for result in results if result.planned.study.name == name)
            sections.append(study_section(result, _collapse(result) if name == "collapse" else ()))
    if plan.base is not None:
        command = plan.wanted.command
        sections.append(how_it_was_made(results, plan.base, plan.runs, command))
        records = {
            "command": command,
            "recipe": plan.base.shown.to_dict(),
            "environments": environments(results),
            "studies": [study_to_dict(result) for result in results],
        }
    if COMPLEXITY in plan.wanted.names:
        records["complexity"] = complexity_records()
    lead = "The paper's tables and figures beside our own runs, made by illama (arXiv 2404.06773)."
    document = Document(f"illama reproduce {' '.join(plan.wanted.names)}", lead, tuple(sections))
    text = json.dumps(records, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return results, write_document(document, plan.report_dir, {"results.json": text.encode()}), outcome


def estimate_plan(plan: Plan) -> tuple[list[Estimate], int]:
    """What each run will take by a short measurement, and how many train at a time. Writes nothing but a log.

    Raises:
        UserError: The device cannot be used.
    """
    devices = choose_devices(plan.wanted.devices)
    check(plan)
    with open_slots(devices, plan.wanted.jobs) as slots:
        return estimate(plan.runs, slots, plan.out), len(slots)


def check(plan: Plan) -> None:
    """Complain now about what would be wrong with every run, and make the folders.

    Raises:
        UserError: The data cannot be opened or has another number of classes, or the folder cannot be written to.
    """
    from illama.tasks import task_of

    if all(run.is_finished for run in plan.runs):
        return
    recipe = plan.runs[0].recipe
    task_of(recipe).open(recipe)
    try:
        for name in ("runs", "logs"):
            make_folder(plan.out / name)
    except OSError as error:
        raise UserError(f"--out {plan.out} cannot be made: {error.strerror}; give another folder") from error
    if not os.access(plan.out, os.W_OK):
        raise UserError(f"--out {plan.out} cannot be written to; give another folder")


def choose_devices(names: Sequence[str]) -> list[str]:
    """The devices that were named, or every CUDA GPU, or the best there is.

    Raises:
        UserError: One of them cannot be used.
    """
    import torch

    from illama.device import resolve_device

    if names:
        return [str(resolve_device(name)) for name in names]
    if torch.cuda.is_available():
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [str(resolve_device(None))]


def _collapse(result: StudyResult) -> tuple[Block, ...]:
    """What the class token sees, from the trained networks."""
    from illama.data import EvalLoader, EvalTransform, open_source
    from illama.reproduce.collapse import CollapseRow, collapse_blocks

    rows, recipe = [], None
    for row in result.planned.rows:
        if finished := result.rows[row.name].finished:
            recipe = finished[0].recipe
            name = next(name for name in _COLLAPSE_LABELS if _is_of(recipe.model, name))
            folders = tuple(run.folder for run in finished)
            rows.append(CollapseRow(_COLLAPSE_LABELS[name], name, recipe.model.mask_mode, folders))
    if recipe is None:
        return ()
    try:
        source = open_source(recipe.data, "eval", in_chans=recipe.model.in_chans, seed=recipe.seed)
        loader = EvalLoader(source, EvalTransform.of(recipe), COLLAPSE_IMAGES, "cpu")
        return collapse_blocks(rows, next(iter(loader)).images)
    except UserError as error:  # data that has gone since; the rest of the report does not need it
        return (Text(f"What the class token sees could not be computed: {error}."),)


def _is_of(model: ModelConfig, row: str) -> bool:
    """Whether a network is that row of the roadmap."""
    return all(getattr(model, field) == value for field, value in ROADMAP[row].items())
