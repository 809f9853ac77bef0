"""The run folder: what is written once at the start, and what decides whether a command continues a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from illama.checkpoint.tags import has_checkpoint
from illama.disk import make_folder, replace_file, to_disk
from illama.environment import environment
from illama.errors import UserError
from illama.recipes import Recipe, load_recipe, recipe_diff
from illama.training.run_lock import LOCK_FILE

if TYPE_CHECKING:
    import torch

RECIPE_FILE, CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE = (
    "recipe.yaml",
    "classes.json",
    "environment.json",
    "metrics.jsonl",
)
# What a start that was cut short leaves behind: the recipe, which makes a folder a run, is written last.
_BEFORE_A_RUN = {
    LOCK_FILE,
    CLASSES_FILE,
    ENVIRONMENT_FILE,
    *(f".{name}.partial" for name in (RECIPE_FILE, CLASSES_FILE, ENVIRONMENT_FILE)),
}


def check_run_folder(run_dir: Path, recipe: Recipe, init_from: Path | None) -> bool:
    """Whether the folder holds a started run of this very recipe (True) or is free for a new one (False).

    Raises:
        UserError: Another recipe was started there (its changed keys are named), `init_from` is given for a run
            that has begun, or the folder holds something else.
    """
    if not run_dir.exists():
        return False
    if run_dir.is_dir() and {path.name for path in run_dir.iterdir()} <= _BEFORE_A_RUN:
        return False
    if not (run_dir / RECIPE_FILE).is_file():
        raise UserError(f"{run_dir} exists and is not a run; give another folder with --out")
    begun = has_checkpoint(run_dir)
    changed = recipe_diff(load_recipe(run_dir / RECIPE_FILE), recipe)
    if changed and begun:
        listed = ", ".join(f"{key} ({before!r} -> {after!r})" for key, before, after in changed)
        raise UserError(
            f"{run_dir} holds a run of another recipe; changed: {listed}; "
            "give the same recipe to continue it, or another folder with --out for a new run"
        )
    if init_from is not None and begun:
        raise UserError(
            f"{run_dir} holds a run that has begun, and --init-from starts a new one; "
            "leave --init-from out to continue it, or give another folder with --out"
        )
    return begun


def write_run_folder(run_dir: Path, recipe: Recipe, classes: tuple[str, ...], device: torch.device) -> None:
    """Write recipe, class names and environment of a new run; each is on disk, or not there, whatever happens."""
    texts = {
        CLASSES_FILE: json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n",
        ENVIRONMENT_FILE: json.dumps(environment(device), indent=1) + "\n",
        RECIPE_FILE: recipe.to_yaml(),
    }
    try:
        make_folder(run_dir)
        for name, text in texts.items():
            replace_file(run_dir / name, lambda partial, text=text: partial.write_text(text, encoding="utf-8"))  # type: ignore[misc]
        to_disk(run_dir)
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {run_dir}: {error.strerror}; choose another with --out"
        ) from error
