"""Options that mean the same in every command, and where results go: a file that is written whole, or stdout."""

# Annotations are not postponed here: options of other modules inherit them.
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from illama.console.text import as_json, shown
from illama.errors import UserError
from illama.system.files import demand_writable, utf8, write_file

if TYPE_CHECKING:
    from illama.evaluation.subject import Numbering, Subject


Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 or mps; the best there is by default.")]
Json = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, metavar="FILE", help="Write the result as JSON to a file; - is stdout."),
]
Csv = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, metavar="FILE", help="Write the result as CSV to a file; - is stdout."),
]
STDOUT = "-"


def say(text: str) -> None:
    """One line for a person, on stderr; names in it stand as a terminal may have them."""
    print(shown(text, 10 * len(text) + 1), file=sys.stderr)


def check_targets(**targets: str | None) -> None:
    """Refuse, before the work begins, result files that cannot be written.

    Args:
        targets: Option name -> file, "-" for stdout, None when the option is not given.

    Raises:
        UserError: A folder that does not exist or cannot be written to, or one target asked for twice.
    """
    given = {option: target for option, target in targets.items() if target is not None}
    for option, target in given.items():
        if target == STDOUT:
            continue
        try:
            demand_writable(Path(target))
        except OSError as error:
            raise UserError(f"--{option} {target} cannot be written: {error.strerror}; give another name") from error
        except ValueError:  # a NUL
            raise UserError(f"--{option} {target!r} is no file's name; give another one") from None
    places = [target if target == STDOUT else os.path.realpath(target) for target in given.values()]
    if len(set(places)) < len(places):
        options = " and ".join(f"--{option}" for option in given)
        where = "stdout" if STDOUT in places else given.popitem()[1]
        raise UserError(f"{options} cannot both write to {where}; give one of them another file")


def hand_over(json: str | None, values: Callable[[], Any], show: Callable[[], object]) -> None:
    """The result of a command, as JSON where that is asked for, and for people unless the JSON is on stdout.

    Args:
        json: The option's file; None where it is not given.
        values: Gives the result as plain values, or as a text that is JSON already.
        show: Prints it for people.
    """
    if json is not None:
        result = values()
        write_result(json, result if isinstance(result, str) else as_json(result))
    if json != STDOUT:
        show()


def write_result(target: str, text: str) -> None:
    """Write to a file, which appears only when it is complete, or to stdout ("-").

    Raises:
        UserError: The disk is full, ...
    """
    if target == STDOUT:
        sys.stdout.write(text)
        return
    try:
        write_file(Path(target), utf8(text), given=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; give another name") from error


CheckpointPath = Annotated[
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
