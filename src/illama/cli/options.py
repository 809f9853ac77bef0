"""Options that mean the same in every command."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Device = Annotated[str | None, Parameter(help="cpu, cuda, cuda:1 or mps; the best there is by default.")]
Json = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, metavar="FILE", help="Write the result as JSON to a file; - is stdout."),
]
Csv = Annotated[
    str | None,
    Parameter(allow_leading_hyphen=True, metavar="FILE", help="Write the result as CSV to a file; - is stdout."),
]
