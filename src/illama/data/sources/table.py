"""Tables of text: CSV, TSV and Parquet files as rows of cells, each with the number that people know it by."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from illama.console.text import shown
from illama.errors import UserError
from illama.system.files import open_given, why

TABLES = (".csv", ".tsv", ".parquet")  # endings of their names
_SAMPLE = 64 << 10  # bytes of a text that tell its separator
_STATED = re.compile(r"sep=(.)\r?\n", re.IGNORECASE)  # a first line that Excel writes


@dataclass(frozen=True)
class Table:
    """A table as it was read.

    Attributes:
        rows: Its cells as text, None where there is nothing.
        lines: Number of each row as a person counts lines.
        columns: Names of the columns; numbers from 1 on where there is no header.
        has_header: Whether the names of the columns stand in it.
    """

    rows: list[list[str | None]]
    lines: list[int]
    columns: list[str]
    has_header: bool

    def cells(self, place: int, most: int | None = None) -> list[str | None]:
        """A column, or its first `most` cells."""
        return [row[place] if place < len(row) else None for row in self.rows[:most]]

    def with_header(self) -> Table:
        """The same with its first row for the names of the columns; tables put together by cat repeat it."""
        first = self.rows[0]
        rest = [place for place, row in enumerate(self.rows) if row != first]
        names = [cell or str(place + 1) for place, cell in enumerate(first)]
        return Table([self.rows[i] for i in rest], [self.lines[i] for i in rest], names, True)


def read_table(path: Path, header: Collection[str]) -> Table:
    """Read a table.

    Args:
        path: A .csv, .tsv or .parquet file; of a text the first line with something in it tells the separator.
        header: What the columns of a header are called, in small letters and digits: a first row without any of these
            is data.

    Raises:
        UserError: It cannot be read as a table; the message names the line.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path, header)


def plain(column: str) -> str:
    """A column's name without regard to case and signs."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _read_text(path: Path, header: Collection[str]) -> Table:
    where, number = shown(path), 0
    rows: list[list[str | None]] = []
    lines: list[int] = []
    try:
        with io.TextIOWrapper(open_given(path), encoding="utf-8-sig", newline="") as file:
            sample = file.read(_SAMPLE)
            if "\0" in sample:
                raise UserError(f"{where} is no UTF-8 text (is it UTF-16?); save it again as UTF-8")
            stated = _STATED.match(sample)
            file.seek(0)
            if stated:
                file.readline()
                number = 1
            separator = stated[1] if stated else _separator(path, sample)
            reader = csv.reader(file, delimiter=separator, strict=True)
            offset = number
            for row in reader:
                first, number = number + 1, reader.line_num + offset
                cells = [cell.strip() or None for cell in row]
                if any(cells):
                    rows.append(cells)
                    lines.append(first)
    except UnicodeDecodeError:
        raise UserError(f"{where} is not UTF-8; save it again as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{where}, row {number + 1}, cannot be read: {shown(error)} (an unclosed quote?)") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{where} cannot be read as a table: {shown(why(error))}") from None
    if not rows:
        raise UserError(f"{where} has no rows; expected file,label in each")
    table = Table(rows, lines, [str(place + 1) for place in range(len(rows[0]))], False)
    return table.with_header() if any(plain(cell or "") in header for cell in rows[0]) else table


def _separator(path: Path, sample: str) -> str:
    """What separates the cells of a text: the sign that its first line has most of."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((line for line in sample.splitlines() if line.strip()), "")
    return max((",", ";", "\t", "|"), key=lambda sign: (first.count(sign), sign == ","))


def _read_parquet(path: Path) -> Table:
    pyarrow = import_pyarrow()
    with reading_parquet(shown(path)):
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(use_threads=False)
        columns = [column.to_pylist() for column in table.columns]
        rows = [[text_of(value) for value in row] for row in zip(*columns, strict=True)]
    if not rows:
        raise UserError(f"{shown(path)} has no rows; expected a file and a label in each")
    return Table(rows, list(range(1, len(rows) + 1)), list(table.column_names), True)


def import_pyarrow() -> Any:
    """The package with its `parquet`.

    Raises:
        UserError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError('parquet files need pyarrow; pip install "illama[data]"') from None
    return pyarrow


@contextmanager
def reading_parquet(where: str, hint: str = "") -> Iterator[None]:
    """Turns whatever pyarrow raises on a damaged file, which is nearly every type there is, into one line.

    Args:
        where: The file or the data set, as it is shown.
        hint: What to add to the line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{where} cannot be read as parquet: {shown(first_line(error))}{hint}") from None


def first_line(error: Exception) -> str:
    """What an exception says, without the lines that are for programmers."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def text_of(value: Any) -> str | None:
    """A cell of a typed table as a text would have it, whole numbers without a point; None where there is nothing.

    Lists and structs are no text: they stand as Python writes them, in brackets.
    """
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    if isinstance(value, float):
        value = None if math.isnan(value) else int(value) if value.is_integer() else value
    return None if value is None else str(value).strip() or None
