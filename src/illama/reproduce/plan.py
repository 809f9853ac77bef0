"""From studies to runs: which recipe, seed and folder each row stands for, and what has been done of it."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from illama.errors import UserError
from illama.evaluation.run import choose_data
from illama.recipes import Recipe, load_recipe
from illama.recipes.rules import flatten
from illama.reproduce.study import Row, Study, resolve_edits
from illama.training.runs import read_run

# Which recipe a study edits when none is named: that of the data set.
RECIPE_OF_DATA = {"digits": "digits_micro", "cifar10": "cifar10_tiny", "imagenet": "roadmap_tiny"}
TRANSFER_RECIPES = {"cifar10": "cifar10_transfer_tiny", "cifar100": "cifar100_transfer_tiny"}


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
    def rows(self) -> tuple[Row, ...]:
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
        """The overrides, and where the data is."""
        if self.data is None:
            return list(self.overrides)
        chosen = choose_data(None, self.data)
        path = [] if chosen.path is None else [_override("data.path", chosen.path)]
        return [*self.overrides, _override("data.name", chosen.name), *path]

    @cached_property
    def _packaged(self) -> dict[str, Any]:
        return flatten(load_recipe(self.recipe).to_dict())

    @cached_property
    def common(self) -> Recipe:
        """What the rows edit; without a soft mask, which each row decides for itself."""
        return self.load({"schedule.softness.cutoff_epochs": 0}, 0)

    def load(self, edits: Mapping[str, object], seed: int) -> Recipe:
        """The recipe of one run."""
        return load_recipe(self.recipe, [*self.all_overrides, *_written(edits), f"seed={seed}"])

    def words(self, edits: Mapping[str, object], seed: int, weights: Path | None) -> tuple[str, ...]:
        """What follows `illama` to train one run by hand: of its edits those that change the recipe."""
        changes = {key: value for key, value in edits.items() if self._packaged[key] != value}
        start = () if weights is None else ("--init-from", str(weights))
        return ("train", self.recipe, *self.all_overrides, *_written(changes), f"seed={seed}", *start)


def choose_base(studies: Sequence[Study], recipe: str | None, overrides: Sequence[str], data: str | None) -> Base:
    """The recipe that the rows edit: the one that is named, or that of the data set.

    Raises:
        UserError: No recipe is known for the data, or an override is what the rows or the seeds decide.
    """
    if recipe is None:
        recipe = _recipe_of(studies, data)
    base = Base(recipe, tuple(overrides), data)
    given = {text.partition("=")[0].strip() for text in overrides}
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

    def planned(row: Row, edits: Mapping[str, Any], seed: int, start: Path | None) -> PlannedRun:
        recipe = base.load(edits, seed)
        identity = _identity(recipe, start)
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


def _identity(recipe: Recipe, weights: Path | None) -> str:
    """What a run is, as a part of its folder's name: a hash of all that decides it, and the seed."""
    tree = recipe.to_dict()
    seed = tree.pop("seed")
    text = json.dumps([tree, None if weights is None else str(weights)], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:8]}-seed{seed}"


def _start(study: Study, row: Row, weights: Mapping[str, Path]) -> Path | None:
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
    name = Path(data.rstrip("/")).name.lower().replace("-", "").replace("_", "")
    table = TRANSFER_RECIPES if any(row.weights for study in studies for row in study.rows) else RECIPE_OF_DATA
    for start, recipe in sorted(table.items(), key=lambda entry: -len(entry[0])):
        if name.startswith(start):
            return recipe
    known = ", ".join(f"{start}: {recipe}" for start, recipe in table.items())
    raise UserError(f"no recipe is known for the data set {data}; give --recipe NAME (by data set: {known})")


def _written(edits: Mapping[str, object]) -> list[str]:
    """Edits as they are typed."""
    return [_override(key, value) for key, value in edits.items()]


def _override(key: str, value: object) -> str:
    """key=value as YAML reads it; bare where a shell and YAML leave it as it is."""
    if isinstance(value, str):
        plain = value and shlex.quote(value) == value and not value[0].isdigit()
        return f"{key}={value}" if plain else f"{key}={json.dumps(value, ensure_ascii=False)}"
    return f"{key}={json.dumps(value)}"
