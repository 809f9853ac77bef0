"""What a study is: rows, each a few edits of one recipe, and what the paper says of them; and which runs it needs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from illama.errors import UserError
from illama.evaluation.subject import choose_data
from illama.recipes import Recipe, load_recipe, overridden_keys, override
from illama.recipes.rules import flatten
from illama.system.files import at_home
from illama.training.runs import read_run
from illama.weights.load import locate

PUBLISHED_EPOCHS = 300  # length of the paper's runs, which its cutoffs belong to
# Which recipe a study edits when none is named: that of the data set, by the name of its folder.
RECIPE_OF_DATA = {
    "digits": "digits_micro",
    "cifar10": "cifar10_tiny",
    "imagenet": "roadmap_tiny",
    "imagenet1k": "roadmap_tiny",
    "ilsvrc2012": "roadmap_tiny",
}
TRANSFER_RECIPES = {"cifar10": "cifar10_transfer_tiny", "cifar100": "cifar100_transfer_tiny"}
_LATER_KEYS = {
    "data": ("class_depth", "image_column", "label_column", "max_image_pixels"),
    "schedule": ("patch_drop", "mixing"),
}

Metric = Literal["top1", "train_loss", "test_loss"]
METRICS: dict[Metric, str] = {"top1": "top-1 %", "train_loss": "train loss", "test_loss": "test loss"}


@dataclass(frozen=True)
class Epochs:
    """A moment of the paper's 300 epochs, at the same share of a run of another length.

    Attributes:
        published: The paper's epoch.
    """

    published: int

    def of(self, epochs: int) -> int:
        """The nearest whole epoch of a run of `epochs`, at least 1."""
        return max(1, round(epochs * self.published / PUBLISHED_EPOCHS))


@dataclass(frozen=True)
class BySetting:
    """A value that the paper chooses by setting ("tiny" or "base")."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Printed:
    """What the paper prints of a row: accuracy in percent, losses in nats; None where it prints nothing."""

    top1: float | None = None
    train_loss: float | None = None
    test_loss: float | None = None


@dataclass(frozen=True)
class StudyRow:
    """One line of a table, and the runs behind it.

    Attributes:
        name: Short name; part of the run folders' names.
        label: How the paper calls it.
        edits: Recipe key -> value, `Epochs` or `BySetting`; None where the paper quotes somebody else's run.
        paper: Setting -> what the paper prints.
        against: Name of the row that this one is compared with; None for a first row.
        settings: The settings in which the paper has the row; all when empty.
        weights: Which weights it starts from (a word of `--init-from`); None starts from scratch.
    """

    name: str
    label: str
    edits: Mapping[str, Any] | None
    paper: Mapping[str, Printed] = field(default_factory=dict)
    against: str | None = None
    settings: tuple[str, ...] = ()
    weights: str | None = None

    def resolved_edits(self, setting: str, epochs: int) -> dict[str, Any]:
        """The edits as plain values, in a setting and for a run of so many epochs."""
        resolved = {}
        for key, value in (self.edits or {}).items():
            chosen = value.values[setting] if isinstance(value, BySetting) else value
            resolved[key] = chosen.of(epochs) if isinstance(chosen, Epochs) else chosen
        return resolved


@dataclass(frozen=True)
class Comparison:
    """Part of a claim: `row` has more (or less) of a metric than `against`."""

    row: str
    against: str
    more: bool = True
    metric: Metric = "top1"


@dataclass(frozen=True)
class Collapse:
    """Part of a claim: `row` learns nothing, though `healthy`, the row before it, does."""

    row: str
    healthy: str | None = None


@dataclass(frozen=True)
class Cure:
    """Part of a claim: `row` learns, where `collapsed` does not, or far less."""

    row: str
    collapsed: str


@dataclass(frozen=True)
class Claim:
    """A sentence, the paper's or ours, and what has to be seen for it to hold."""

    text: str
    parts: tuple[Comparison | Collapse | Cure, ...]


@dataclass(frozen=True)
class Study:
    """A declarative list of runs over any data set and model size.

    Attributes:
        name: The word of the command line.
        title: Heading of the report.
        source: Tables and figures of the paper.
        question: What it asks, in a sentence or two.
        rows: In the paper's order.
        setting: Recipe -> which of the paper's columns stands beside it.
        claims: What the paper says of them, or what is to be found out.
        metrics: Columns of the table.
        notes: What people should know when they compare.
    """

    name: str
    title: str
    source: str
    question: str
    rows: tuple[StudyRow, ...]
    setting: Callable[[Recipe], str]
    claims: tuple[Claim, ...] = ()
    metrics: tuple[Metric, ...] = ("top1", "train_loss", "test_loss")
    notes: tuple[str, ...] = ()

    def rows_of(self, setting: str) -> tuple[StudyRow, ...]:
        """The rows that belong to a setting."""
        return tuple(row for row in self.rows if not row.settings or setting in row.settings)


@dataclass(frozen=True)
class PlannedRun:
    """One training run; several rows, of several studies, may stand for the same.

    Attributes:
        recipe: Complete, with its seed.
        folder: Its run folder.
        weights: Weights that it starts from.
        words: What follows `illama` to train it by hand.
    """

    recipe: Recipe
    folder: Path
    weights: Path | None
    words: tuple[str, ...]

    @property
    def is_finished(self) -> bool:
        """Whether it has been trained to its end."""
        return self.folder.is_dir() and read_run(self.folder).state == "finished"


@dataclass(frozen=True)
class PlannedStudy:
    """A study on one recipe.

    Attributes:
        study: Its rows and claims.
        setting: The column of the paper that stands beside it.
        runs: Row name -> its runs, one per seed; rows that the paper only quotes have none.
    """

    study: Study
    setting: str
    runs: Mapping[str, tuple[PlannedRun, ...]]

    @property
    def rows(self) -> tuple[StudyRow, ...]:
        """The rows of this setting."""
        return self.study.rows_of(self.setting)


@dataclass(frozen=True)
class Base:
    """What all rows have in common.

    Attributes:
        recipe: Name or path of the recipe.
        overrides: Edits of it, `section.key=value`, that every row shares.
        data: What `--data` gave.
    """

    recipe: str
    overrides: tuple[str, ...]
    data: str | None

    def _data_words(self, *, absolute: bool) -> list[str]:
        """The overrides that say what `--data` gave; its path from the top, or as it was given."""
        if self.data is None:
            return []
        chosen = choose_data(None, self.data)
        words = [override("data.name", chosen.name)]
        if chosen.path is not None:
            words.append(override("data.path", str(at_home(chosen.path).absolute()) if absolute else chosen.path))
        return words

    @cached_property
    def _packaged(self) -> dict[str, Any]:
        return flatten(load_recipe(self.recipe).to_dict())

    @cached_property
    def common(self) -> Recipe:
        """What the rows edit; without a soft mask, which each row decides for itself."""
        return self.load({"schedule.softness.cutoff_epochs": 0}, 0)

    @property
    def shown(self) -> Recipe:
        """The same with the data path as it was given, for reports that other people read."""
        return self.common if self.data is None else self.common.with_data_path(choose_data(None, self.data).path)

    @property
    def folder_name(self) -> str:
        """The recipe's name, and what tells apart what was changed in it."""
        if not self.overrides:
            return self.common.name
        return f"{self.common.name}-{hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:6]}"

    def load(self, edits: Mapping[str, object], seed: int) -> Recipe:
        """The recipe of one run. Its data path is absolute: the same data, however spelt, is the same run."""
        words = [*self.overrides, *self._data_words(absolute=True), *_as_typed(edits), f"seed={seed}"]
        return load_recipe(self.recipe, words)

    def words(self, edits: Mapping[str, object], seed: int, weights: Path | None) -> tuple[str, ...]:
        """What follows `illama` to train one run by hand: of its edits those that change the recipe."""
        changes = {key: value for key, value in edits.items() if self._packaged[key] != value}
        overrides = [*self.overrides, *self._data_words(absolute=False), *_as_typed(changes), f"seed={seed}"]
        start = () if weights is None else ("--init-from", str(weights))
        return ("train", self.recipe, *overrides, *start)


def _as_typed(edits: Mapping[str, object]) -> list[str]:
    return [override(key, value) for key, value in edits.items()]


def choose_base(studies: Sequence[Study], recipe: str | None, overrides: Sequence[str], data: str | None) -> Base:
    """The recipe that the rows edit: the one that is named, or that of the data set.

    Raises:
        UserError: No recipe is known for the data, an override is what the rows or the seeds decide, or studies do not
            go together.
    """
    tuned = [study for study in studies if any(row.weights for row in study.rows)]
    if 0 < len(tuned) < len(studies):
        raise UserError(
            f"{tuned[0].name} starts from trained weights with a recipe of its own; give it a command of its own"
        )
    if recipe is None:
        recipe = _recipe_of(data, TRANSFER_RECIPES if tuned else RECIPE_OF_DATA)
    base = Base(recipe, tuple(overrides), data)
    given = overridden_keys(overrides)
    if "seed" in given:
        raise UserError("seed is what --seeds decides: --seeds 3 trains each row with the seeds 0, 1 and 2")
    for study in studies:
        rows = study.rows_of(study.setting(base.common))
        taken = sorted(given & {key for row in rows for key in row.edits or {}})
        if taken:
            raise UserError(
                f"{', '.join(taken)}: this is what the rows of {study.name} decide; leave it out, or train a single "
                "run with illama train"
            )
    return base


def _recipe_of(data: str | None, table: Mapping[str, str]) -> str:
    if data is None:
        raise UserError("which images? give --data (digits, or where CIFAR-10, ImageNet, ... lies), or --recipe NAME")
    name = Path(data).name.lower().replace("-", "").replace("_", "")
    if name in table:
        return table[name]
    by_data_set = ", ".join(f"{data_set}: {recipe}" for data_set, recipe in table.items())
    raise UserError(f"no recipe is known for the data set {data}; give --recipe NAME (by data set: {by_data_set})")


def plan_studies(
    studies: Sequence[Study], base: Base, seeds: int, out: Path, weights: Mapping[str, Path]
) -> tuple[PlannedStudy, ...]:
    """All runs of some studies; equal runs are one, whichever rows they stand for.

    Args:
        studies: Their rows.
        base: What they edit.
        seeds: Runs per row, with the seeds 0, 1, ...
        out: Folder of the studies; the runs lie in its folder `runs`, shared by all studies that are made there.
        weights: What `--init-from` gave, by the rows' words.

    Raises:
        UserError: A row's recipe cannot be, or its start weights are not given.
    """
    folders: dict[str, Path] = {}
    digest = cache(_digest)

    def plan_run(row: StudyRow, edits: Mapping[str, Any], seed: int, start: Path | None) -> PlannedRun:
        recipe = base.load(edits, seed)
        identity = run_identity(recipe, None if start is None else digest(start))
        if identity not in folders:
            made = sorted((out / "runs").glob(f"*-{identity}"))
            folders[identity] = made[0] if made else out / "runs" / f"{row.name}-{identity}"
        return PlannedRun(recipe, folders[identity], start, base.words(edits, seed, start))

    planned = []
    for study in studies:
        setting, runs = study.setting(base.common), {}
        for row in study.rows_of(setting):
            if row.edits is not None:
                start = _start(study, row, weights)
                edits = row.resolved_edits(setting, base.common.schedule.epochs)
                runs[row.name] = tuple(plan_run(row, edits, seed, start) for seed in range(seeds))
        planned.append(PlannedStudy(study, setting, runs))
    return tuple(planned)


def all_runs(planned: Sequence[PlannedStudy]) -> tuple[PlannedRun, ...]:
    """Every run once, in the order of the rows, the seeds of a row together."""
    runs = (run for study in planned for of_row in study.runs.values() for run in of_row)
    return tuple({run.folder: run for run in runs}.values())


def run_identity(recipe: Recipe, weights: str | None) -> str:
    """What a run is, as a part of its folder's name: a hash of all that decides it, and the seed.

    Keys that recipes have had since later do not count while they say what was so before.

    Args:
        recipe: The run's.
        weights: Digest of its start weights.
    """
    tree = recipe.to_dict()
    for section, keys in _LATER_KEYS.items():
        fields = type(getattr(recipe, section)).model_fields
        for key in keys:
            before = fields[key].get_default()
            if tree[section][key] == (before.model_dump(mode="json") if isinstance(before, BaseModel) else before):
                del tree[section][key]
    if tree["task"] == Recipe.model_fields["task"].default:
        del tree["task"]
    seed = tree.pop("seed")
    text = json.dumps([tree, weights], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-seed{seed}"


def _start(study: Study, row: StudyRow, weights: Mapping[str, Path]) -> Path | None:
    if row.weights is None:
        return None
    if row.weights not in weights:
        raise UserError(
            f"{study.name}: {row.label} starts from trained weights; give --init-from {row.weights}=RUN (a run, a "
            "checkpoint or a .safetensors file)"
        )
    return weights[row.weights]


def _digest(weights: Path) -> str:
    """Which weights a file holds: others under the same name make another run."""
    with locate(weights).file.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
