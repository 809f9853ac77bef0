"""From studies to runs: which recipe, seed and folder each row stands for, and what has been done of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from illama.errors import UserError
from illama.evaluation.subject import choose_data
from illama.recipes import Recipe, load_recipe, overridden_keys, override
from illama.recipes.rules import flatten
from illama.reproduce.study import Study, StudyRow, resolve_edits
from illama.system.given_file import at_home
from illama.training.runs import read_run
from illama.weights.locate import locate

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

    @property
    def all_overrides(self) -> list[str]:
        """The overrides, and where the data is, as given."""
        return [*self.overrides, *self._data(absolute=False)]

    def _data(self, *, absolute: bool) -> list[str]:
        if self.data is None:
            return []
        chosen = choose_data(None, self.data)
        named = override("data.name", chosen.name)
        if chosen.path is None:
            return [named]
        path = at_home(chosen.path).absolute() if absolute else chosen.path
        return [named, override("data.path", str(path))]

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
        if self.data is None:
            return self.common
        given = choose_data(None, self.data).path
        return self.common.model_copy(update={"data": self.common.data.model_copy(update={"path": given})})

    @property
    def folder_name(self) -> str:
        """The recipe's name, and what tells apart what was changed in it."""
        if not self.overrides:
            return self.common.name
        return f"{self.common.name}-{hashlib.sha256(json.dumps(sorted(self.overrides)).encode()).hexdigest()[:6]}"

    def load(self, edits: Mapping[str, object], seed: int) -> Recipe:
        """The recipe of one run. Its data path is absolute: the same data, however spelt, is the same run."""
        words = [*self.overrides, *self._data(absolute=True), *_written(edits), f"seed={seed}"]
        return load_recipe(self.recipe, words)

    def words(self, edits: Mapping[str, object], seed: int, weights: Path | None) -> tuple[str, ...]:
        """What follows `illama` to train one run by hand: of its edits those that change the recipe."""
        changes = {key: value for key, value in edits.items() if self._packaged[key] != value}
        start = () if weights is None else ("--init-from", str(weights))
        return ("train", self.recipe, *self.all_overrides, *_written(changes), f"seed={seed}", *start)


def choose_base(studies: Sequence[Study], recipe: str | None, overrides: Sequence[str], data: str | None) -> Base:
    """The recipe that the rows edit: the one that is named, or that of the data set.

    Raises:
        UserError: No recipe is known for the data, an override is what the rows or the seeds decide, or studies do not
            go together.
    """
    tuned = [study.name for study in studies if any(row.weights for row in study.rows)]
    if 0 < len(tuned) < len(studies):
        raise UserError(
            f"{tuned[0]} starts from trained weights with a recipe of its own; give it a command of its own"
        )
    if recipe is None:
        recipe = _recipe_of(studies, data)
    base = Base(recipe, tuple(overrides), data)
    given = overridden_keys(overrides)
    if "seed" in given:
        raise UserError("seed is what --seeds decides: --seeds 3 trains each row with the seeds 0, 1 and 2")
    common = base.common
    for study in studies:
        taken = sorted(given & study.own_keys(study.setting(common)))
        if taken:
            raise UserError(
                f"{', '.join(taken)}: this is what the rows of {study.name} decide; leave it out, or train a single "
                "run with illama train"
            )
    return base


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
    common = base.common
    folders: dict[str, Path] = {}
    digests: dict[Path, str] = {}

    def planned(row: StudyRow, edits: Mapping[str, Any], seed: int, start: Path | None) -> PlannedRun:
        recipe = base.load(edits, seed)
        identity = _identity(recipe, None if start is None else digests.setdefault(start, _digest(start)))
        made = sorted((out / "runs").glob(f"*-{identity}"))
        own = made[0] if made else out / "runs" / f"{row.name}-{identity}"
        return PlannedRun(recipe, folders.setdefault(identity, own), start, base.words(edits, seed, start))

    found = []
    for study in studies:
        setting = study.setting(common)
        runs = {}
        for row in study.rows_of(setting):
            if row.edits is not None:
                edits, start = resolve_edits(row, setting, common.schedule.epochs), _start(study, row, weights)
                runs[row.name] = tuple(planned(row, edits, seed, start) for seed in range(seeds))
        found.append(PlannedStudy(study, setting, runs))
    return tuple(found)


def all_runs(planned: Sequence[PlannedStudy]) -> tuple[PlannedRun, ...]:
    """Every run once, in the order of the rows, the seeds of a row together."""
    runs = (run for study in planned for of_row in study.runs.values() for run in of_row)
    return tuple({run.folder: run for run in runs}.values())


def _identity(recipe: Recipe, weights: str | None) -> str:
    """What a run is, as a part of its folder's name: a hash of all that decides it, and the seed.

    Keys that recipes have had since later do not count while they say what was so before.
    """
    tree = recipe.to_dict()
    for section, keys in _LATER_KEYS.items():
        fields = type(getattr(recipe, section)).model_fields
        for key in keys:
            before = fields[key].get_default()
            if tree[section][key] == (before.model_dump(mode="json") if isinstance(before, BaseModel) else before):
                del tree[section][key]
    seed = tree.pop("seed")
    text = json.dumps([tree, weights], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-seed{seed}"


def _digest(weights: Path) -> str:
    """Which weights a file holds: others under the same name make another run."""
    with locate(weights).file.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _start(study: Study, row: StudyRow, weights: Mapping[str, Path]) -> Path | None:
    if row.weights is None:
        return None
    if row.weights not in weights:
        raise UserError(
            f"{study.name}: {row.label} starts from trained weights; give --init-from {row.weights}=RUN (a run, a "
            "checkpoint or a .safetensors file)"
        )
    return weights[row.weights]


def _recipe_of(studies: Sequence[Study], data: str | None) -> str:
    if data is None:
        raise UserError("which images? give --data (digits, or where CIFAR-10, ImageNet, ... lies), or --recipe NAME")
    name = Path(data).name.lower().replace("-", "").replace("_", "")
    table = TRANSFER_RECIPES if any(row.weights for study in studies for row in study.rows) else RECIPE_OF_DATA
    if name in table:
        return table[name]
    known = ", ".join(f"{data_set}: {recipe}" for data_set, recipe in table.items())
    raise UserError(f"no recipe is known for the data set {data}; give --recipe NAME (by data set: {known})")


def _written(edits: Mapping[str, object]) -> list[str]:
    """Edits as they are typed."""
    return [override(key, value) for key, value in edits.items()]
