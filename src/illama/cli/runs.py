"""`illama runs`: what became of the runs in a folder."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from illama.cli.output import Json, check_targets, hand_over
from illama.console.table import aligned
from illama.console.text import shown
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.training.runs import RunStatus

HEADER = ("RUN", "STATE", "EPOCH", "BEST", "LAST", "RECORD")
NAME_SHARE = 0.35  # of the terminal's width; a longer path loses its beginning
SHORTEST_NAME = 12
RECIPE_ROOM = 40  # characters that a recipe's differences need to stand in the table rather than below


def runs_command(
    directory: Path = Path("runs"),
    /,
    *,
    plot: Annotated[tuple[Path, ...], Parameter(consume_multiple=True, negative="")] = (),
    out: Path | None = None,
    json: Json = None,
) -> None:
    """State, epoch, best and last score (top-1 in percent), age of the last record, and what was changed in the recipe.

    Scores hold at the softness that the run ends with. A stopped run goes on with the command below it.

    Args:
        directory: The folder with the runs, at any depth.
        plot: Runs whose losses and scores are drawn into one picture instead.
        out: That picture; runs.png by default.
    """
    from illama.training.runs import find_runs, read_run

    check_targets(json=json)
    if plot and json is not None:
        raise UserError("--plot draws a picture and --json writes numbers; give one of them")
    if plot:
        from illama.training.figures import draw_runs

        print(draw_runs(plot, out or Path("runs.png")))
        return
    if out is not None:
        raise UserError(f"--out {out} is the picture of --plot, which is not given; add --plot RUN OTHER")
    runs = [read_run(path) for path in find_runs(directory)]
    width = shutil.get_terminal_size((140, 24)).columns
    hand_over(json, lambda: {"runs": [run.to_dict() for run in runs]}, lambda: print(report(runs, directory, width)))


def report(runs: Sequence[RunStatus], directory: Path, width: int) -> str:
    """The runs for people: a line for each, and below it what does not fit or what to do."""
    numbers = aligned([HEADER[1:], *map(_cells, runs)])
    longest = max(SHORTEST_NAME, min(int(NAME_SHARE * width), width - len(numbers[0]) - 2))
    names = [_tail(_name(run.path, directory), longest) for run in runs]
    header, *rows = aligned(list(zip([HEADER[0], *names], numbers, strict=True)), left=2)
    room = width - len(header) - 2
    beside = room >= RECIPE_ROOM
    lines = [f"{header}  RECIPE" if beside else header]
    for run, row in zip(runs, rows, strict=True):
        recipe = _recipe(run)
        lines.append(f"{row}  {_shortened(recipe, room)}".rstrip() if beside else row)
        if not beside and recipe:
            lines.append(f"  {_shortened(recipe, width - 2)}")
        lines += [f"  {detail}" for detail in _details(run)]
    return "\n".join(lines)


def _cells(run: RunStatus) -> tuple[str, ...]:
    epoch = "-" if run.epochs is None else f"{_epoch(run.epoch)}/{run.epochs}"
    return (run.state, epoch, _score(run.best), _score(run.last), _age(run.age_s))


def _details(run: RunStatus) -> list[str]:
    if run.about is not None:
        return [run.about]
    if run.command is None:
        return []
    if not run.step:
        return [f"stopped before anything was saved; begin with: {run.command}"]
    of = "" if run.total_steps is None else f" of {run.total_steps}"
    return [f"stopped at step {run.step}{of}; continue with: {run.command}"]


def _recipe(run: RunStatus) -> list[str]:
    """The recipe's name and its differences, each a word."""
    if run.recipe is None:
        return []
    start = [] if run.start is None else [f"from {shown(run.start)}"]
    from illama.recipes.load import override

    if run.changes is None:
        return [f"{run.recipe} (own recipe)", *start]
    changes = [shown(override(change.key, change.new)) for change in run.changes]
    return [run.recipe, *start, *(changes or ["as packaged"])]


def _shortened(words: Sequence[str], room: int) -> str:
    """As many words as fit, then the number of those left out."""
    for kept in range(len(words), 0, -1):
        left = len(words) - kept
        text = " ".join(words[:kept]) + (f" (+{left})" if left else "")
        if len(text) <= room:
            return text
    return words[0][:room] if words else ""


def _name(path: Path, directory: Path) -> str:
    return shown(path.name or path.resolve() if path == directory else path.relative_to(directory))


def _tail(text: str, width: int) -> str:
    return text if len(text) <= width else "..." + text[3 - width :]


def _epoch(epoch: float) -> str:
    """Cut, not rounded: 9.99 of 10 epochs is not 10."""
    return f"{int(epoch * 10) / 10:g}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
