"""`illama analyze`: what a network does inside, and how far its answers can be trusted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from illama.analysis.options import ComparisonOptions
from illama.analysis.registry import ANALYSES
from illama.cli.output import STDOUT, Device, Json, check_targets, say, write_result
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.analysis.result import AnalysisResult
    from illama.evaluation.subject import Numbering, Subject

analyze_command = App(
    name="analyze",
    help="Look inside a network: calibration, shape bias, attention, causality, loss landscape; one report of all.",
)


@dataclass(frozen=True, kw_only=True)
class LookOptions:
    """What all analyses share.

    Attributes:
        data: Another data set than the recipe's: a folder, a parquet file, or a name such as digits.
        split: Which split; the recipe's evaluation split by default.
        batch_size: Images at a time in a pass over all of them.
        softness: Softness of the mask, 0 (causal) to 1; the one saved with the weights by default.
        out: A folder for the page, its pictures, CSV and JSON; made if absent.
    """

    data: str | None = None
    split: str | None = None
    batch_size: int | None = None
    softness: float | None = None
    device: Device = None
    out: Path | None = None
    json: Json = None

    def __post_init__(self) -> None:
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file; give a folder")


Shared = Annotated[LookOptions, Parameter(name="*")]


@analyze_command.command(name="report")
def report_command(
    checkpoint: str,
    /,
    *words: str,
    without: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    title: str | None = None,
    shared: Shared = LookOptions(),
) -> None:
    """Everything that applies, as one page that opens from disk: summary, pictures, CSV and JSON.

    Running the same command again uses what is in OUT/cache.

    Args:
        checkpoint: A run folder, a checkpoint, a weights file, or the name of published weights.
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
        found = look(subject, options, folder, without)
        if not found.findings:
            raise UserError("no analysis applies: " + "; ".join(f"{n}: {why}" for n, why in found.left_out.items()))
        written = write_look(found, folder, title)
    if shared.json is not None:
        write_result(shared.json, (folder / "report.json").read_text(encoding="utf-8"))
    if shared.json != STDOUT:
        _print_summary(found.findings)
        print(written[0])


@analyze_command.command(name="compare")
def compare_command(
    first: str,
    second: str,
    /,
    *,
    options: Annotated[ComparisonOptions, Parameter(name="*")] = ComparisonOptions(),  # noqa: B008 - frozen
    shared: Shared = LookOptions(),
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


def _register(name: str) -> None:
    """`illama analyze NAME CHECKPOINT`, with the options of that analysis."""
    analysis = ANALYSES[name]

    def command(checkpoint: str, /, *, options: Any = analysis.options(), shared: Shared = LookOptions()) -> None:  # noqa: B008
        from illama.analysis.report import about, why_not

        check_targets(json=shared.json)
        with _workspace(shared.out) as workspace:
            if analysis.of_logits and _holds_logits(checkpoint):
                from illama.evaluation.saved_logits import SavedLogits

                _refuse_unused(checkpoint, shared)
                saved = SavedLogits.load(Path(checkpoint))
                _hand_over(analysis.load(f"{name}_of")(saved, options), shared, saved.about)
                return
            _demand_network(name, checkpoint)
            subject = _open(checkpoint, shared, analysis.numbering)
            reason = why_not(name, subject, options)
            if reason is not None:
                raise UserError(f"{name}: {reason}")
            _hand_over(analysis.load(name)(subject, options, workspace), shared, about(subject), subject)

    takes = "CHECKPOINT: a run folder, a checkpoint, a weights file, or the name of published weights"
    takes += "; or a file of `illama eval --save-logits`." if analysis.of_logits else "."
    command.__doc__ = f"{analysis.help}\n\nArgs:\n    checkpoint: {takes.partition(': ')[2]}"
    command.__annotations__ = {
        "checkpoint": str,
        "options": Annotated[analysis.options, Parameter(name="*")],
        "shared": Shared,
        "return": None,
    }
    analyze_command.command(command, name=name)


for _name in ANALYSES:
    _register(_name)


def _open(checkpoint: str, shared: LookOptions, numbering: Numbering) -> Subject:
    from illama.evaluation.subject import open_subject

    return open_subject(
        checkpoint,
        data=shared.data,
        split=shared.split,
        batch_size=shared.batch_size,
        device=shared.device,
        softness=shared.softness,
        numbering=numbering,
    )


def _open_for_report(checkpoint: str, shared: LookOptions) -> Subject:
    """Numbered by the network's classes where the images have them; else only what needs no labels is made."""
    from illama.data.source import UnknownClassError

    subject = _open(checkpoint, shared, "model")
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
    names = ("data", "split", "batch_size", "softness", "device")
    given = ", ".join(f"--{name.replace('_', '-')}" for name in names if getattr(shared, name) is not None)
    if given:
        raise UserError(f"{logits} holds saved logits, which {given} cannot change; leave it out or give a checkpoint")


def _logits(path: str, shared: LookOptions) -> Any:
    """Saved logits, or those of a checkpoint."""
    from illama.evaluation.saved_logits import SavedLogits, logits_of

    return SavedLogits.load(Path(path)) if _holds_logits(path) else logits_of(_open(path, shared, "model"))


def _hand_over(finding: AnalysisResult, shared: LookOptions, about: str, subject: Subject | None = None) -> None:
    """Print of what and what was found, and write what was asked for."""
    from illama.analysis.report import AnalysisReport, write_look

    if shared.json is not None:
        write_result(shared.json, finding.json())
    written = [] if shared.out is None else write_look(AnalysisReport((finding,), subject=subject), shared.out)
    if shared.json != STDOUT:
        print(about)
        _print_summary((finding,))
        print(written[0] if written else "--out FOLDER writes a page with pictures, CSV and JSON")


def _print_summary(findings: tuple[AnalysisResult, ...]) -> None:
    from illama.analysis.report import summary_table
    from illama.console import Terminal
    from illama.report import terminal_table

    table = summary_table(findings)
    Terminal().print(terminal_table(table.header, table.rows))
