"""`illama analyze`: what a network does inside, and how far its answers can be trusted."""

# Annotations are not postponed here: those of `_add_command` are made for each analysis.

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from illama.analysis.registry import ANALYSES, Analysis, ComparisonOptions
from illama.cli.output import CheckpointPath, Json, SubjectOptions, check_targets, hand_over, say
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.analysis.report import AnalysisResult
    from illama.evaluation.subject import Subject

analyze_command = App(
    name="analyze",
    help="Look inside a network: calibration, shape bias, attention, causality, loss landscape; one report of all.",
)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LookOptions(SubjectOptions):
    """What all analyses share.

    Attributes:
        out: A folder for the page, its pictures, CSV and JSON; made if absent.
    """

    out: Path | None = None
    json: Json = None

    def __post_init__(self) -> None:
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")


@analyze_command.command(name="report")
def report_command(
    checkpoint: CheckpointPath,
    /,
    *words: str,
    without: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    title: str | None = None,
    shared: LookOptions = LookOptions(),
) -> None:
    """Everything that applies, as one page that opens from disk: summary, pictures, CSV and JSON.

    Running the same command again uses what is in OUT/cache.

    Args:
        words: Options of the analyses, such as landscape.points=11 shape.cue_conflict=FOLDER.
        without: Analyses to leave out.
        title: The page's title.
    """
    from illama.analysis.registry import read_options
    from illama.analysis.report import about, look, write_look

    check_targets(json=shared.json)
    words = (*words, *(word for word in without if "=" in word))  # an option that takes several takes these too
    without = tuple(name for name in without if "=" not in name)
    options = read_options(words)
    for name in without:
        ANALYSES[name]  # answers for an unknown name
    _demand_network("report", checkpoint)
    folder = shared.out or Path("runs") / "analyze" / Path(checkpoint).name
    with _workspace(folder):
        subject = _open_for_report(checkpoint, shared)
        say(about(subject))
        report = look(subject, options, folder, without)
        if not report.findings:
            raise UserError("no analysis applies: " + "; ".join(f"{n}: {why}" for n, why in report.left_out.items()))
        written = write_look(report, folder, title)

    def show() -> None:
        _print_summary(report.findings)
        print(written[0])

    hand_over(shared.json, lambda: (folder / "report.json").read_text(encoding="utf-8"), show)


@analyze_command.command(name="compare")
def compare_command(
    first: str,
    second: str,
    /,
    *,
    options: Annotated[ComparisonOptions, Parameter(name="*")] = ComparisonOptions(),  # noqa: B008 - frozen
    shared: LookOptions = LookOptions(),
) -> None:
    """Two networks on the same images: differences with intervals, and a paired test.

    Args:
        first: A file of `illama eval --save-logits`, or a checkpoint.
        second: The other one.
    """
    from illama.analysis.compare import compare

    check_targets(json=shared.json)
    with _workspace(shared.out):
        if _holds_logits(first) and _holds_logits(second):
            _refuse_unused(first, shared)
        one, other = _logits(first, shared), _logits(second, shared)
        _hand_over(compare(one, other, options), shared, f"first:  {one.about}\nsecond: {other.about}")


def _add_command(analysis: Analysis) -> None:
    """`illama analyze NAME CHECKPOINT`, with the options of that analysis."""
    takes = "A run folder, a checkpoint, a weights file, or the name of published weights"
    takes += "; or a file of `illama eval --save-logits`." if analysis.of_logits else "."
    given = Annotated[str, Parameter(help=takes)]
    own = Annotated[analysis.options, Parameter(name="*")]  # type: ignore[name-defined]

    def command(
        checkpoint: given,
        /,
        *,
        options: own = analysis.options(),  # noqa: B008 - frozen
        shared: LookOptions = LookOptions(),
    ) -> None:
        _analyze(analysis, checkpoint, options, shared)

    analyze_command.command(command, name=analysis.name, help=analysis.help)


def _analyze(analysis: Analysis, checkpoint: str, options: Any, shared: LookOptions) -> None:
    """One analysis of a checkpoint, or of saved logits."""
    from illama.analysis.report import about
    from illama.evaluation.saved_logits import SavedLogits

    check_targets(json=shared.json)
    with _workspace(shared.out) as workspace:
        if analysis.of_logits and _holds_logits(checkpoint):
            _refuse_unused(checkpoint, shared)
            saved = SavedLogits.load(Path(checkpoint))
            _hand_over(analysis.run_of(saved, options), shared, saved.about)
            return
        _demand_network(analysis.name, checkpoint)
        subject = shared.open(checkpoint, analysis.numbering)
        reason = analysis.why_not(subject, options)
        if reason is not None:
            raise UserError(f"{analysis.name}: {reason}")
        _hand_over(analysis.run(subject, options, workspace), shared, about(subject), subject)


for _row in ANALYSES.values():
    _add_command(_row)


def _open_for_report(checkpoint: str, shared: LookOptions) -> "Subject":
    """Numbered by the network's classes where the images have them; else only what needs no labels is made."""
    from illama.data.source import UnknownClassError

    subject = shared.open(checkpoint)
    try:
        subject.source  # noqa: B018 - opens it, before anything is computed
    except UnknownClassError:
        return dataclasses.replace(subject, numbering="data")
    return subject


def _holds_logits(path: str) -> bool:
    from illama.evaluation.saved_logits import SavedLogits

    return SavedLogits.is_one(Path(path))


def _demand_network(name: str, checkpoint: str) -> None:
    if _holds_logits(checkpoint):
        raise UserError(f"{checkpoint} holds saved logits; {name} needs the network: give its checkpoint")


@contextmanager
def _workspace(out: Path | None) -> Iterator[Path | None]:
    """Where intermediate results are kept; made before the work begins, which says whether --out can be written.

    Work that is refused leaves no empty folder behind.
    """
    from illama.analysis.report import CACHE
    from illama.evaluation.cache import make_workspace

    if out is None:
        yield None
        return
    made = [folder for folder in (out / CACHE, out, *out.parents) if not folder.exists()]
    workspace = make_workspace(out / CACHE)
    try:
        yield workspace
    except UserError:
        for folder in made:
            with suppress(OSError):  # it holds something
                folder.rmdir()
        raise


def _refuse_unused(logits: str, shared: LookOptions) -> None:
    """Refuse options of a pass over the images, which saved logits have behind them."""
    given = ", ".join(f"--{name.replace('_', '-')}" for name, value in shared.given().items() if value is not None)
    if given:
        raise UserError(f"{logits} holds saved logits, which {given} cannot change; leave it out or give a checkpoint")


def _logits(path: str, shared: LookOptions) -> Any:
    """Saved logits, or those of a checkpoint."""
    from illama.evaluation.saved_logits import SavedLogits, logits_of

    return SavedLogits.load(Path(path)) if _holds_logits(path) else logits_of(shared.open(path))


def _hand_over(result: "AnalysisResult", shared: LookOptions, about: str, subject: "Subject | None" = None) -> None:
    """Print of what and what was found, and write what was asked for."""
    from illama.analysis.report import AnalysisReport, write_look

    def show() -> None:
        print(about)
        _print_summary((result,))
        print(written[0] if written else "--out FOLDER writes a page with pictures, CSV and JSON")

    written = [] if shared.out is None else write_look(AnalysisReport((result,), subject=subject), shared.out)
    hand_over(shared.json, result.json, show)


def _print_summary(findings: tuple["AnalysisResult", ...]) -> None:
    from illama.analysis.report import summary_table
    from illama.console import Terminal
    from illama.console.table import terminal_table

    table = summary_table(findings)
    Terminal().print(terminal_table(table.header, table.rows))
