"""What a run is given: the same on all processes, and when it goes on what it was begun with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from illama.checkpoint.folder import FILE_SUMS, LAST, PREVIOUS, DamagedError, checkpoint_folder, current, stated_meta
from illama.console.text import parse_json, read_json, shown
from illama.data.layout import is_gone
from illama.data.sources.splits import difference
from illama.errors import UserError
from illama.evaluation.origin import DataIdentity, Origin, Start
from illama.recipes import Recipe, load_recipe
from illama.recipes.rules import flatten
from illama.system.files import utf8
from illama.training.run_folder import CLASSES_FILE, ENVIRONMENT_FILE, METRICS_FILE, RECIPE_FILE, write_files


def given_to_train(recipe: Recipe, run_dir: Path, init_from: Path | None) -> dict[str, Any]:
    """What all processes of a run have to be given, by what it is. Each machine may have data and weights elsewhere."""
    keys = flatten(recipe.to_dict())
    del keys["data.path"]
    started = "not given" if init_from is None else "given"
    return {"the command": "train", **keys, "--out": str(run_dir), "--init-from": started}


def what_is_seen(run_dir: Path) -> dict[str, str]:
    """The checkpoints that a run could go on from, as this process sees them on its machine's disks."""
    where = f"in {run_dir}, on a disk that they share,"
    return {f"the checkpoint {tag} {where}": _seen(checkpoint_folder(run_dir, tag)) for tag in (LAST, PREVIOUS)}


def _seen(checkpoint: Path) -> str:
    folder = current(checkpoint)
    if folder is None:
        return "not there"
    try:
        meta = stated_meta(folder)
    except DamagedError as damage:
        return damage.what
    sums = json.dumps(meta.get(FILE_SUMS), sort_keys=True).encode()
    return f"that of step {meta.get('step')} ({hashlib.sha256(sums).hexdigest()[:12]})"


def demand_data(recipe: Recipe, run_dir: Path) -> None:
    """The data of a begun run is there.

    Raises:
        UserError: It is not.
    """
    if is_gone(recipe.data):
        where = shown(recipe.data.path)
        raise UserError(f"the data of {shown(run_dir)}, {where}, is not there; give its place with --data to go on")


def compare_with_begun(
    run_dir: Path, recipe: Recipe, classes: Sequence[str], origin: Origin, init_from: Path | None, steps_per_epoch: int
) -> list[str]:
    """Whether what a begun run is now given is what it was begun with; a new place of the data is noted in its recipe.

    Args:
        run_dir: The run's folder.
        recipe: As `check_run_folder` accepted it.
        classes: Class names of the data.
        origin: Identities of the data, and of the weights in `init_from`.
        init_from: What was given as start weights, if anything.
        steps_per_epoch: As the data has it.

    Returns:
        What a person should know, line by line.

    Raises:
        UserError: Other classes, images or start weights than the run was begun with; what differs is named.
    """
    begun = Origin.read(run_dir)
    undo = "give what it was begun with to continue it, or another folder with --out for a new run"
    changed = difference(_read_classes(run_dir), classes)
    if changed is not None:
        raise UserError(f"{run_dir} was begun with other classes: {changed}; {undo}")
    for what, before, now in () if begun is None else _pairs(begun, origin):
        changed = before.difference(now)
        if changed is not None:
            raise UserError(f"{run_dir} was begun with other {what} images: {changed}; {undo}")
    if begun is None:
        _compare_with_log(run_dir, steps_per_epoch, origin.eval.images, undo)
    if init_from is not None:
        _compare_start(run_dir, begun, origin.start, init_from)
    return _move(run_dir, recipe, by_identity=begun is not None)


def _pairs(begun: Origin, now: Origin) -> tuple[tuple[str, DataIdentity, DataIdentity], ...]:
    return (("training", begun.train, now.train), ("evaluation", begun.eval, now.eval))


def _read_classes(run_dir: Path) -> list[str]:
    file = run_dir / CLASSES_FILE
    try:
        classes = read_json(file)
        if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
            return classes
    except (OSError, ValueError):
        pass
    raise UserError(f"{file} is damaged: it does not list the run's classes; take it from a copy of the run")


def _compare_with_log(run_dir: Path, steps_per_epoch: int, eval_images: int, undo: str) -> None:
    """For a run that did not keep its data's identity: the numbers that its log tells."""
    for line in reversed(_lines(run_dir / METRICS_FILE)):
        try:
            record = parse_json(line)
            before, now = round(record["step"] / record["epoch"]), steps_per_epoch
            what = "steps in an epoch"
            if before == now and record.get("kind") == "eval":
                before, now, what = record["count"] + record["skipped"], eval_images, "evaluation images"
        except (ValueError, TypeError, KeyError, ZeroDivisionError):
            continue
        if before != now:
            raise UserError(f"{run_dir} was begun with other data: it had {before} {what}, now there are {now}; {undo}")
        if record.get("kind") == "eval":
            return


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []


def _compare_start(run_dir: Path, begun: Origin | None, given: Start | None, init_from: Path) -> None:
    """Whether the start weights that are given are the run's own.

    Raises:
        UserError: The run was begun without any, or with others.
    """
    leave_out = "leave --init-from out to continue it, or give another folder with --out for a new run"
    if begun is None:
        if str(init_from) not in _words(run_dir):
            raise UserError(f"{run_dir} does not say that it was begun with --init-from {init_from}; {leave_out}")
    elif begun.start is None:
        raise UserError(f"{run_dir} was begun with new weights, not with --init-from {init_from}; {leave_out}")
    elif given is None:
        if str(init_from) != begun.start.given:
            raise UserError(
                f"{run_dir} was begun from {begun.start.given}, and {init_from} cannot be found to compare; {leave_out}"
            )
    elif given.tensors != begun.start.tensors:
        raise UserError(f"{run_dir} was begun from other weights than {init_from} holds now; {leave_out}")


def _words(run_dir: Path) -> list[str]:
    """The words of the command that began a run."""
    try:
        words = read_json(run_dir / ENVIRONMENT_FILE)["command"]
        return [word.partition("=")[2] or word for word in words]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def _move(run_dir: Path, recipe: Recipe, *, by_identity: bool) -> list[str]:
    """Note in the run's recipe where its data lies now."""
    before = load_recipe(run_dir / RECIPE_FILE).data.path
    if before == recipe.data.path:
        return []
    write_files(run_dir, {RECIPE_FILE: utf8(recipe.to_yaml())})
    if before is None or recipe.data.path is None or not Path(before).is_absolute():
        return []
    how = "the same by classes, counts, names and content" if by_identity else "the same by classes and counts"
    return [f"the data lies in {shown(recipe.data.path)} now (it was {shown(before)}); it is {how}"]
