"""The run folder: what is written once at the start, and what decides whether a command continues a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from illama.checkpoint.folder import HELD_OUT_FILE, ORIGIN_FILE, has_checkpoint
from illama.errors import UserError
from illama.recipes import Recipe, load_recipe, recipe_diff
from illama.system.environment import environment
from illama.system.files import is_partial, make_folder, to_disk, utf8, write_file
from illama.system.lock import LOCK_FILE

if TYPE_CHECKING:
    import torch

RECIPE_FILE, CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE = (
    "recipe.yaml",
    "classes.json",
    "environment.json",
    "metrics.jsonl",
)
_MOST_LOGGED = 1e15  # no number that a run writes into its log is larger
# What a start that was cut short leaves behind: the recipe, which makes a folder a run, is written last.
_BEFORE_A_RUN = {
    LOCK_FILE,
    *(CLASSES_FILE, ENVIRONMENT_FILE, ORIGIN_FILE, HELD_OUT_FILE),
}
_FREE = ("data.path", "model.num_classes")  # keys of a recipe that the data decides


def is_logged_number(value: object) -> bool:
    """Whether a run may have written a value into its log as a number; NaN is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST_LOGGED


def check_run_folder(run_dir: Path, recipe: Recipe) -> bool:
    """Whether the folder holds a started run of this very recipe (True) or is free for a new one (False).

    Where the data lies does not count, for it may have been moved, and neither does the number of classes, which is the
    data's: `begun.compare_with_begun` compares the classes by name.

    Raises:
        UserError: Another recipe was started there (its changed keys are named), or the folder holds something else.
    """
    if not run_dir.exists():
        return False
    if run_dir.is_dir() and all(path.name in _BEFORE_A_RUN or is_partial(path.name) for path in run_dir.iterdir()):
        return False
    if not (run_dir / RECIPE_FILE).is_file():
        raise UserError(f"{run_dir} exists and is not a run; give another folder with --out")
    begun = has_checkpoint(run_dir)
    listed = changed_keys(load_recipe(run_dir / RECIPE_FILE), recipe)
    if listed and begun:
        raise UserError(
            f"{run_dir} holds a run of another recipe; changed: {listed}; "
            "give the same recipe to continue it, or another folder with --out for a new run"
        )
    return begun


def changed_keys(before: Recipe, now: Recipe) -> str:
    """The keys in which two recipes differ, with their values; "" where they make the same run."""
    changes = [one for one in recipe_diff(before, now) if one.key not in _FREE]
    return ", ".join(f"{key} ({old!r} -> {new!r})" for key, old, new in changes)


def write_run_folder(
    run_dir: Path,
    recipe: Recipe,
    classes: tuple[str, ...],
    device: torch.device,
    more: Mapping[str, bytes] = MappingProxyType({}),
) -> None:
    """Write what a new run begins with, `more` files among it; each is on disk, or not there, whatever happens."""
    files = {
        CLASSES_FILE: utf8(json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n"),
        ENVIRONMENT_FILE: utf8(json.dumps(environment(device), indent=1) + "\n"),
        **more,
        RECIPE_FILE: utf8(recipe.to_yaml()),
    }
    write_files(run_dir, files)


def write_files(run_dir: Path, files: Mapping[str, bytes]) -> None:
    """Write files of a run's folder by name, in their order; each appears as a whole.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        make_folder(run_dir)
        for name, content in files.items():
            write_file(run_dir / name, content)
        to_disk(run_dir)
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {run_dir}: {error.strerror}; choose another with --out"
        ) from error
