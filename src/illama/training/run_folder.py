"""The run folder: what is written once at the start, and what decides whether a command continues a run."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from illama.checkpoint.folder import current
from illama.checkpoint.io import checkpoint_folder
from illama.errors import UserError
from illama.recipes import Recipe, load_recipe, recipe_diff

RECIPE_FILE, CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE = (
    "recipe.yaml",
    "classes.json",
    "environment.json",
    "metrics.jsonl",
)


def check_run_folder(run_dir: Path, recipe: Recipe, init_from: Path | None) -> bool:
    """Whether the folder holds a started run of this very recipe (True) or is free for a new one (False).

    Raises:
        UserError: Another recipe was started there (its changed keys are named), `init_from` is given for a run
            that has begun, or the folder holds something else.
    """
    if not run_dir.exists() or (run_dir.is_dir() and not any(run_dir.iterdir())):
        return False
    if not (run_dir / RECIPE_FILE).is_file():
        raise UserError(f"{run_dir} exists and is not a run; give another folder with --out")
    begun = current(checkpoint_folder(run_dir, "last")) is not None
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
    """Write recipe, class names and environment of a new run."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CLASSES_FILE).write_text(json.dumps(list(classes), ensure_ascii=False, indent=1) + "\n")
        (run_dir / ENVIRONMENT_FILE).write_text(json.dumps(environment(device), indent=1) + "\n")
        (run_dir / RECIPE_FILE).write_text(recipe.to_yaml())
    except OSError as error:
        raise UserError(
            f"cannot write the run folder {run_dir}: {error.strerror}; choose another with --out"
        ) from error


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, git revision and command line: what a number needs to be trusted later."""
    packages = ("illama", "numpy", "pillow", "timm", "torchvision", "pyarrow", "safetensors")
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in packages},
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "git_revision": _git_revision(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _git_revision() -> str | None:
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
