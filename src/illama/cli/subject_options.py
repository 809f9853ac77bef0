"""Options of every command that opens a network together with images."""

# Annotations are not postponed here: classes of other modules inherit them.
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from illama.cli.output import Device

if TYPE_CHECKING:
    from illama.evaluation.subject import Numbering, Subject

Checkpoint = Annotated[
    str, Parameter(help="A run folder, a checkpoint, a weights file, or the name of published weights.")
]


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SubjectOptions:
    """Which images, and how the network looks at them.

    Attributes:
        data: Another data set than the recipe's: a folder, a parquet file, or a name such as digits.
        split: Which split; the recipe's evaluation split by default.
        batch_size: Images at a time in a pass over all of them.
        softness: Softness of the mask, 0 (causal) to 1; the one saved with the weights by default.
    """

    data: str | None = None
    split: str | None = None
    batch_size: int | None = None
    softness: float | None = None
    device: Device = None

    def open(self, checkpoint: str, numbering: "Numbering" = "model") -> "Subject":
        """The network on the images; see `open_subject`."""
        from illama.evaluation.subject import open_subject

        return open_subject(checkpoint, **self.given(), numbering=numbering)

    def given(self) -> dict[str, Any]:
        """What `open_subject` and `evaluate` call them."""
        return {option.name: getattr(self, option.name) for option in fields(SubjectOptions)}
