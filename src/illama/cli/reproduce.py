"""`illama reproduce`: the paper's tables and ablations by one command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from illama.cli.output import Json, check_targets, hand_over
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.report import Table
    from illama.reproduce.command import Plan

_Several = Parameter(consume_multiple=True, negative="")


def reproduce_command(
    *words: str,
    data: str | None = None,
    recipe: str | None = None,
    seeds: int = 3,
    device: Annotated[tuple[str, ...], _Several] = (),
    jobs: int = 1,
    out: Path | None = None,
    init_from: Annotated[tuple[str, ...], _Several] = (),
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    json: Json = None,
) -> None:
    """Train the rows of the paper's tables on any data set, and write paper beside ours: report.html and report.md.

    Studies: roadmap (Tables 17, 1), soft-mask (3, 4), mixing (5), collapse (1), mask-modes, peers, cifar (9), and
    complexity (2, 6, 11), which only counts. Several may be named; what they share is trained once. Running the same
    command again goes on where it stopped and trains nothing twice.

    Args:
        words: Names of studies, then changes of the recipe that all rows share, such as schedule.epochs=20.
        data: A folder, a parquet file, or a name such as digits.
        recipe: The recipe that the rows edit; by default that of the data set (digits_micro, cifar10_tiny, ...).
        seeds: Runs of each row, with the seeds 0, 1, ...
        device: One or more of cpu, cuda:0, ...; all GPUs, or else the best there is, by default.
        jobs: Runs at a time on each device; on the CPU they share its cores.
        out: Folder for runs and reports; runs/reproduce/RECIPE by default.
        init_from: Trained weights that rows of cifar start from: illama=RUN vit=RUN.
        dry_run: Only show the runs, and how long they will take by a short measurement.
    """
    from illama.reproduce.command import Wanted, make_plan, reproduce

    check_targets(json=json)
    wanted = Wanted(
        names=tuple(word for word in words if "=" not in word),
        overrides=tuple(word for word in words if "=" in word),
        data=data,
        recipe=recipe,
        seeds=seeds,
        devices=device,
        jobs=jobs,
        out=out,
        weights=dict(map(_weights, init_from)),
    )
    plan = make_plan(wanted)
    if dry_run:
        _show_estimate(plan)
        return
    results, written, outcome = reproduce(plan)

    def show() -> None:
        from illama.reproduce.study_report import results_table

        for result in results:
            _show(result.planned.study.title, results_table(result, brief=True))
        for path in written:
            if path.suffix in (".html", ".md", ".json"):
                print(path)

    hand_over(json, lambda: (plan.report_dir / "results.json").read_text(encoding="utf-8"), show)
    if outcome.failed:
        name, why = next(iter(outcome.failed.items()))
        raise UserError(
            f"{len(outcome.failed)} of {len(plan.runs)} runs failed, the first: {name}: {why}; the report shows the "
            "others, the same command tries them again"
        )


def _weights(text: str) -> tuple[str, Path]:
    key, equals, path = text.partition("=")
    if not equals or not path:
        raise UserError(f"--init-from {text!r}: allowed: illama=RUN or vit=RUN")
    return key, Path(path)


def _show(title: str, table: Table) -> None:
    """A table of the report on the terminal."""
    from illama.console import Terminal
    from illama.console.table import terminal_table

    console = Terminal(piped_width=160)
    console.print(f"\n{title}", style="bold")
    console.print(terminal_table(table.header, table.rows))


def _show_estimate(plan: Plan) -> None:
    from illama.console.text import duration
    from illama.report import Table
    from illama.reproduce.command import estimate_plan

    estimates, together = estimate_plan(plan)
    rows = []
    for one in estimates:
        state, cells = "to do", ("", "", "", "")
        if one.pace is None:
            state = "finished" if one.is_finished else f"cannot run: {one.problem}"
        else:
            times = (f"{1e3 * one.pace.step_s:.3g}", duration(one.pace.evaluations_s), duration(one.pace.total_s))
            cells = (f"{one.pace.steps:,}", *times)
        rows.append((one.run.folder.name, state, *cells))
    _show("Plan", Table(("run", "state", "steps", "ms per step", "evaluations", "all of it"), tuple(rows)))
    times_s = [one.pace.total_s for one in estimates if one.pace is not None]
    finished = sum(one.is_finished for one in estimates)
    said = f"{len(estimates)} runs, {finished} finished"
    if refused := len(estimates) - finished - len(times_s):
        said += f", {refused} cannot run"
    if not times_s:
        print(f"{said}; nothing is left to do")
        return
    left = max(sum(times_s) / together, *times_s)
    print(f"{said}; {len(times_s)} to train take about {duration(left)}, {together} at a time")
