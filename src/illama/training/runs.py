"""What became of the runs in a folder: read from recipe, metrics.jsonl and meta.json, without torch."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import yaml

from illama.checkpoint.folder import (
    BEST,
    LAST,
    ORIGIN_FILE,
    PREVIOUS,
    DamagedError,
    checkpoint_folder,
    current,
    has_checkpoint,
    kept_tags,
    read_meta,
)
from illama.console.text import parse_json, read_json, shown
from illama.errors import UserError
from illama.recipes import Change, list_recipes, load_recipe
from illama.recipes.rules import flatten
from illama.recipes.schema import LONGEST_YAML, SoftnessConfig, parse_yaml
from illama.system.environment import launch_words, typed_command
from illama.system.files import read_given, read_given_text
from illama.system.lock import in_words, lock_holder
from illama.tasks import TASKS, Score
from illama.training.run_folder import CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE, RECIPE_FILE, is_logged_number

State = Literal["running", "finished", "stopped", "broken"]
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run at a glance.

    Attributes:
        path: The run's folder.
        state: "running" (a process holds its lock), "finished", "stopped" (goes on when it is started again) or
            "broken". Where there are no locks (see `RunLock`) a running one counts as stopped.
        about: Who runs it, or why it is broken; else None.
        recipe: The recipe's name; None where it cannot be read.
        start: What the weights that it started from are called; None for newly initialised ones.
        changes: What the recipe changes in the packaged one of its name; None for a recipe of another name.
        step: Optimizer steps done: of a running run those of its last record, else those of the checkpoint.
        total_steps: Optimizer steps of the whole run; None before the first record.
        epoch: Epochs done.
        epochs: Epochs of the whole run.
        score: Name of what runs of its task are judged by ("top1"); None where the recipe cannot be read.
        best: Best score of all evaluations, at the softness the run ends with.
        last: Score of the last evaluation, likewise.
        last_softness: Softness in force at the last evaluation.
        age_s: Seconds since the last record.
        checkpoints: Tags of the checkpoints.
        command: What continues the run, for a shell; None for a run that is finished or broken.
    """

    path: Path
    state: State = "stopped"
    about: str | None = None
    recipe: str | None = None
    start: str | None = None
    changes: tuple[Change, ...] | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    epochs: int | None = None
    score: str | None = None
    best: float | None = None
    last: float | None = None
    last_softness: float | None = None
    age_s: float | None = None
    checkpoints: tuple[str, ...] = ()
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        changes = None if self.changes is None else [change._asdict() for change in self.changes]
        return asdict(self) | {"path": str(self.path), "changes": changes, "checkpoints": list(self.checkpoints)}


def find_runs(directory: Path) -> list[Path]:
    """All run folders below a folder, and the folder itself if it is one; by path.

    Raises:
        UserError: There is no such folder, or no run in it.
    """
    if not directory.is_dir():
        raise UserError(f"there is no folder {directory}; give the one that holds your runs")
    runs = []
    for at, folders, files in os.walk(directory):
        if RECIPE_FILE in files and {CLASSES_FILE, ENVIRONMENT_FILE} & set(files):
            runs.append(Path(at))
            folders.clear()
        folders[:] = [name for name in folders if not name.startswith(".")]
    if not runs:
        raise UserError(
            f"there are no runs in {directory} (a run holds {RECIPE_FILE} and {CLASSES_FILE}); "
            "give the folder that holds yours, or start one: illama quickstart"
        )
    return sorted(runs)


def read_run(path: Path) -> RunStatus:
    """State of one run; whatever is wrong with its folder is told in the result."""
    status = RunStatus(path=path)
    try:
        recipe = _recipe(path)
        changes, start, score = _changes(recipe), start_of(path), TASKS[recipe["task"]].score
        status = replace(status, recipe=recipe["name"], epochs=recipe["schedule.epochs"], changes=changes, start=start)
        status = _with_records(replace(status, score=score.key), recipe, score)
        return _with_state(status, recipe)
    except UserError as error:
        return replace(status, state="broken", about=" ".join(str(error).split()))
    except Exception as error:  # whatever lies in this folder, the other runs are shown
        return replace(status, state="broken", about=shown(f"{type(error).__name__}: {error}"))


def _with_records(status: RunStatus, recipe: Record, score: Score) -> RunStatus:
    """What metrics.jsonl says."""
    file = status.path / METRICS_FILE
    if not file.is_file():
        return status
    records = list(_records(file, score))
    evaluations = [record for record in records if record.get("kind") == "eval"]
    soft = SoftnessConfig(**{key: recipe[f"schedule.softness.{key}"] for key in SoftnessConfig.model_fields})
    judged = score.judged_key(soft.ends_soft(recipe["schedule.epochs"]))
    steps = [round(record["step"] / record["epoch"]) for record in records if record.get("epoch")]
    status = replace(
        status,
        age_s=max(0.0, time.time() - file.stat().st_mtime),
        total_steps=steps[-1] * recipe["schedule.epochs"] if steps else None,
        step=records[-1]["step"] if records else 0,
        epoch=float(records[-1]["epoch"]) if records else 0.0,
    )
    if not evaluations:
        return status
    last = evaluations[-1]
    best = score.best([record[judged] for record in evaluations])
    return replace(status, best=best, last=last[judged], last_softness=last["softness"])


def _with_state(status: RunStatus, recipe: Record) -> RunStatus:
    """Whether it runs, has ended, or where it goes on: the checkpoint decides that, not the log."""
    tags = (LAST, PREVIOUS, BEST)
    present = [tag for tag in tags if current(checkpoint_folder(status.path, tag)) is not None]
    status = replace(status, checkpoints=(*present, *kept_tags(status.path)))
    holder = lock_holder(status.path)
    if holder is not None:
        return replace(status, state="running", about=in_words(holder))
    meta = _checkpoint_meta(status.path)
    step = 0 if meta is None else int(meta["step"])
    evaluated = status.last is not None and status.epoch == status.epochs
    if meta is not None and evaluated and meta["epoch"] == status.epochs:
        return replace(status, state="finished", step=step)
    epoch = 0.0
    if meta is not None:
        total, epochs = status.total_steps, status.epochs
        epoch = step * epochs / total if total and epochs else float(meta["epoch"])
    return replace(status, state="stopped", step=step, epoch=epoch, command=_command(status.path, _place(recipe)))


def start_of(run_dir: Path) -> str | None:
    """What the weights that a run started from are called; None for new ones, or where that is not known."""
    try:
        start = read_json(run_dir / ORIGIN_FILE)["start"]
        return None if start is None else str(start["name"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _checkpoint_meta(path: Path) -> Record | None:
    """meta.json of the checkpoint that the run would go on from; files are looked for, not read.

    Raises:
        UserError: There are checkpoints, and each lacks something.
    """
    complaint: DamagedError | None = None
    for tag in (LAST, PREVIOUS):
        folder = current(checkpoint_folder(path, tag))
        if folder is None:
            continue
        try:
            return read_meta(folder, verify=False)
        except DamagedError as error:
            complaint = complaint or error
    if complaint is not None and has_checkpoint(path):
        raise complaint
    return None


def _records(file: Path, score: Score) -> Iterator[Record]:
    """Evaluations and the last record; a line that a crash cut short is passed over."""
    lines = read_given(file).decode(errors="replace").splitlines()
    last = next((i for i in range(len(lines) - 1, -1, -1) if _parsed(lines[i], score) is not None), -1)
    for number, line in enumerate(lines[: last + 1]):
        if number == last or '"eval"' in line:  # most lines are neither, and need not be parsed
            record = _parsed(line, score)
            if record is not None:
                yield record


def _parsed(line: str, score: Score) -> Record | None:
    try:
        record = parse_json(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not {"step", "epoch"} <= record.keys():
        return None
    least = {"step": 0, "epoch": 0, "softness": 0, score.key: score.least, score.causal_key: score.least}
    numbers = [(record[key], bound) for key, bound in least.items() if key in record]
    return record if all(is_logged_number(number) and number >= bound for number, bound in numbers) else None


def _recipe(path: Path) -> Record:
    """A run's recipe as {"section.key": value}.

    The file is what `Recipe.to_yaml` wrote; as long as it has exactly a recipe's keys, it is not checked again, which
    would take four times as long.
    """
    file = path / RECIPE_FILE
    try:
        tree = parse_yaml(read_given_text(file, 4 * LONGEST_YAML))
    except (OSError, yaml.YAMLError, ValueError):
        tree = None
    if isinstance(tree, dict):
        flat, names = flatten(tree), _packaged_names()
        if flat.keys() == _packaged(tree["name"] if tree.get("name") in names else names[0]).keys():
            return flat
    return flatten(load_recipe(file).to_dict())


@cache
def _packaged_names() -> list[str]:
    return list_recipes()


@cache
def _packaged(name: str) -> Record:
    return flatten(load_recipe(name).to_dict())


def _changes(recipe: Record) -> tuple[Change, ...] | None:
    if recipe["name"] not in _packaged_names():
        return None
    packaged = _packaged(recipe["name"])
    return tuple(Change(key, packaged[key], recipe[key]) for key in packaged if packaged[key] != recipe[key])


def _place(recipe: Record) -> str | None:
    """Where the data has to lie; None where it is in the package, or where the path is a cache."""
    return None if recipe["data.name"].startswith("hfds/") else recipe["data.path"]


def _command(path: Path, data: str | None) -> str:
    """What continues a run: the command that began it, or one that reads the run's own recipe.

    Args:
        path: The run's folder.
        data: Where its recipe says that the data lies.
    """
    own = shlex.join(["illama", "train", str(path / RECIPE_FILE), "--out", str(path)])
    try:
        typed = read_json(path / ENVIRONMENT_FILE)
        command, folder = typed_command(typed), typed.get("working_folder") or os.getcwd()
        own = shlex.join(["illama", *launch_words(typed), *shlex.split(own)[1:]])
        place = None if data is None else os.path.join(folder, os.path.expanduser(data))
        if place is not None and not os.path.exists(place):
            return f"{own} --data WHERE_IT_IS_NOW"
        moved = place is not None and _data_of(typed["command"], folder) not in (None, os.path.abspath(place))
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError):
        return own
    if command is None or moved or not os.path.isdir(folder):
        return own
    return command if folder == os.getcwd() else f"cd {shlex.quote(folder)} && {command}"


def _data_of(words: list[str], folder: str) -> str | None:
    """The place of the data that a command names, from the top; None where it names none."""
    named = [word.partition("=")[2] for word in words if word.startswith(("--data=", "data.path="))]
    named += [value for option, value in pairwise(words) if option == "--data"]
    return os.path.abspath(os.path.join(folder, os.path.expanduser(named[-1]))) if named else None
