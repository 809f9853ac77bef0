"""What a study is: rows, each a few edits of one recipe, what the paper prints for them, and what it claims."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from illama.recipes import Recipe

PUBLISHED_EPOCHS = 300  # length of the paper's runs, which its cutoffs belong to

Metric = Literal["top1", "train_loss", "test_loss"]
METRICS: dict[Metric, str] = {"top1": "top-1 %", "train_loss": "train loss", "test_loss": "test loss"}


@dataclass(frozen=True)
class Epochs:
    """A moment of the paper's 300 epochs, at the same share of a run of another length.

    Attributes:
        published: The paper's epoch.
    """

    published: int

    def of(self, epochs: int) -> int:
        """The nearest whole epoch of a run of `epochs`, at least 1."""
        return max(1, round(epochs * self.published / PUBLISHED_EPOCHS))


@dataclass(frozen=True)
class BySetting:
    """A value that the paper chooses by setting ("tiny" or "base")."""

    values: Mapping[str, Any]


@dataclass(frozen=True)
class Printed:
    """What the paper prints of a row: accuracy in percent, losses in nats; None where it prints nothing."""

    top1: float | None = None
    train_loss: float | None = None
    test_loss: float | None = None


@dataclass(frozen=True)
class StudyRow:
    """One line of a table, and the runs behind it.

    Attributes:
        name: Short name; part of the run folders' names.
        label: How the paper calls it.
        edits: Recipe key -> value, `Epochs` or `BySetting`; None where the paper quotes somebody else's run.
        paper: Setting -> what the paper prints.
        against: Name of the row that this one is compared with; None for a first row.
        settings: The settings in which the paper has the row; all when empty.
        weights: Which weights it starts from (a word of `--init-from`); None starts from scratch.
    """

    name: str
    label: str
    edits: Mapping[str, Any] | None
    paper: Mapping[str, Printed] = field(default_factory=dict)
    against: str | None = None
    settings: tuple[str, ...] = ()
    weights: str | None = None


@dataclass(frozen=True)
class Comparison:
    """Part of a claim: `row` has more (or less) of a metric than `against`."""

    row: str
    against: str
    more: bool = True
    metric: Metric = "top1"


@dataclass(frozen=True)
class Collapse:
    """Part of a claim: `row` learns nothing, though `healthy`, the row before it, does."""

    row: str
    healthy: str | None = None


@dataclass(frozen=True)
class Cure:
    """Part of a claim: `row` learns, where `collapsed` does not, or far less."""

    row: str
    collapsed: str


@dataclass(frozen=True)
class Claim:
    """A sentence, the paper's or ours, and what has to be seen for it to hold."""

    text: str
    parts: tuple[Comparison | Collapse | Cure, ...]


@dataclass(frozen=True)
class Study:
    """A declarative list of runs over any data set and model size.

    Attributes:
        name: The word of the command line.
        title: Heading of the report.
        source: Tables and figures of the paper.
        question: What it asks, in a sentence or two.
        rows: In the paper's order.
        claims: What the paper says of them, or what is to be found out.
        metrics: Columns of the table.
        setting: Recipe -> which of the paper's columns stands beside it.
        notes: What people should know when they compare.
    """

    name: str
    title: str
    source: str
    question: str
    rows: tuple[StudyRow, ...]
    claims: tuple[Claim, ...]
    metrics: tuple[Metric, ...]
    setting: Callable[[Recipe], str]
    notes: tuple[str, ...] = ()

    def rows_of(self, setting: str) -> tuple[StudyRow, ...]:
        """The rows that belong to a setting."""
        return tuple(row for row in self.rows if not row.settings or setting in row.settings)

    def own_keys(self, setting: str) -> set[str]:
        """Recipe keys that the rows decide, and nobody else."""
        return {key for row in self.rows_of(setting) for key in row.edits or {}}


def resolve_edits(row: StudyRow, setting: str, epochs: int) -> dict[str, Any]:
    """A row's edits as plain values.

    Args:
        row: A row with edits.
        setting: Chooses among the values of `BySetting`.
        epochs: Length of the run, which `Epochs` are brought to.
    """
    resolved = {}
    for key, value in (row.edits or {}).items():
        chosen = value.values[setting] if isinstance(value, BySetting) else value
        resolved[key] = chosen.of(epochs) if isinstance(chosen, Epochs) else chosen
    return resolved
