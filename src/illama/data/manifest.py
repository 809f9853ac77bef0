"""A list of files as a data set: a CSV, TSV or Parquet table with a file, a label and maybe a split in each row.

Columns are known by their names (`FILE`, `LABEL`, `SPLIT`; `data.image_column` and `data.label_column` say otherwise),
and a table without a header by its two columns. Files are looked for below the table's folder; where that does not have
them, in the folder that is called like the table (train.csv: train/) and in images/, and their endings may be missing.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from illama.data.class_names import composed, few, in_order
from illama.data.folder import FolderSource
from illama.data.formats import FileKind, ending_of, kind_of_file, picture_endings, remedy
from illama.data.layout import Layout, needed_path
from illama.data.source import number_classes
from illama.data.walk import Found, PassedOver
from illama.errors import UserError
from illama.text import shown

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

# Names of columns without regard to case and signs, the likeliest first.
FILE = (
    *("file", "filename", "filepath", "path", "image", "imagefile", "imagepath", "imagename", "img", "imgpath"),
    *("photo", "picture", "imageid", "photoid", "imgid", "id", "name", "key"),
)
LABEL = (
    *("label", "labels", "class", "classname", "category", "categoryname", "target", "labelname", "species", "breed"),
    *("y", "classid", "categoryid", "labelid"),
)
# Columns that say yes or no, and the splits that those are.
_FLAGS = {
    "isvalid": ("train", "validation"),
    "isval": ("train", "validation"),
    "isvalidation": ("train", "validation"),
    "istest": ("train", "test"),
    "istrain": ("test", "train"),
}
_YES = ("1", "1.0", "true", "yes", "y", "t")
SPLIT = ("split", "set", "subset", "partition", "phase", "fold", "usage", "datasplit", *_FLAGS)
REPEATED = "rows that say again what another row says"
_ENDINGS = (".csv", ".tsv", ".parquet")
_SAMPLE = 64 << 10  # bytes of a text that tell its separator
_TRIED = 50  # rows that tell where the files lie


@dataclass(frozen=True)
class Table:
    """A manifest as it was read.

    Attributes:
        rows: Its cells as text, None where there is nothing.
        columns: Names of the columns; numbers from 1 on where there is no header.
        first: Number of the first row as a person counts lines.
    """

    rows: list[list[str | None]]
    columns: list[str]
    first: int


def is_manifest(columns: Sequence[str], data: DataConfig) -> bool:
    """Whether a table with these columns lists files and their classes."""
    return (
        _column(columns, FILE, data.image_column) is not None and _column(columns, LABEL, data.label_column) is not None
    )


def look_at_manifest(data: DataConfig, found: Found | None) -> ManifestLayout:
    """The layout that a table of files describes.

    Raises:
        UserError: The table cannot be read, its columns are not understood, a row lacks its file or label, or the files
            are not there.
    """
    path = needed_path(data)
    if not path.is_file() or path.suffix.lower() not in _ENDINGS:
        tables = [] if found is None else found.holding(*_ENDINGS)
        raise UserError(
            f"{shown(path)} is no table of files; give data.path=FILE.csv (or .tsv, .parquet)"
            + (f"; there is {shown(tables[0])}" if tables else "")
        )
    return ManifestLayout(data, path, _read_table(path, data))


class ManifestLayout(Layout):
    """What a table of files describes."""

    def __init__(self, data: DataConfig, path: Path, table: Table) -> None:
        file, label, split = _roles(path, table, data)
        self._root = str(path.parent)
        passed_over = PassedOver()
        rows = _unique(path, table, file, label, split, passed_over)
        find, where = _finder(path, [row[0] for row in rows])
        self._files = [find(row[0]) for row in rows]
        self._labels = [composed(row[1]) for row in rows]
        self._splits = [row[2] for row in rows]
        for name in self._files:
            if kind_of_file(name) is FileKind.UNREAD:
                ending = ending_of(name)
                passed_over.add(f"{ending} pictures that cannot be read here: {remedy(ending)}", name, lost=True)
        columns = f"column {shown(table.columns[file])} is the file{where}, {shown(table.columns[label])} the label"
        columns += "" if split is None else f", {shown(table.columns[split])} the split"
        also = [name for name in table.columns if name != table.columns[label] and _is_called(name, LABEL)]
        columns += f" (there is also {few(also)}: data.label_column=...)" if also else ""
        super().__init__(data, "list", shown(path), [*{name for name in self._splits if name}], passed_over, [columns])
        self.how_to_split = "add a column split (train, val) to the table"

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> FolderSource:
        what = self.where + (f", split {shown(split)}" if split is not None else "")
        chosen = [i for i, own in enumerate(self._splits) if split is None or own == split]
        chosen = [i for i in chosen if kind_of_file(self._files[i]) is not FileKind.UNREAD]
        names = in_order({self._labels[i] for i in chosen})
        numbers = {name: number for number, name in enumerate(names)}
        labels = np.array([numbers[self._labels[i]] for i in chosen], dtype=np.int64)
        own_names, labels = number_classes(names, labels, classes, f"list {what}")
        description = f"list {what}: {len(labels)} images, {len(own_names)} classes"
        return FolderSource(self._root, [self._files[i] for i in chosen], labels, own_names, in_chans, description)


def _read_table(path: Path, data: DataConfig) -> Table:
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            sample = file.read(_SAMPLE)
            file.seek(0)
            rows = [row for row in csv.reader(file, delimiter=_separator(path, sample)) if any(map(str.strip, row))]
    except UnicodeDecodeError:
        raise UserError(f"{shown(path)} is not UTF-8; save it again as UTF-8") from None
    except (OSError, csv.Error) as error:
        raise UserError(f"{shown(path)} cannot be read as a table: {shown(error)}") from None
    if not rows:
        raise UserError(f"{shown(path)} has no rows; expected file,label in each")
    cells: list[list[str | None]] = [[cell.strip() or None for cell in row] for row in rows]
    asked = {data.image_column, data.label_column} & set(rows[0])
    if asked or (_column(rows[0], FILE, None) is not None or _column(rows[0], LABEL, None) is not None):
        return Table(cells[1:], [cell.strip() for cell in rows[0]], 2)
    return Table(cells, [str(place + 1) for place in range(len(rows[0]))], 1)


def _separator(path: Path, sample: str) -> str:
    """What separates the cells of a text: that of the first line that splits it into the most cells."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((line for line in sample.splitlines() if line.strip()), "")
    return max((",", ";", "\t", "|"), key=lambda sign: (first.count(sign), sign == ","))


def _read_parquet(path: Path) -> Table:
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, use_threads=False)
    except (OSError, pyarrow.lib.ArrowException) as error:
        raise UserError(f"{shown(path)} cannot be read as parquet: {shown(str(error).splitlines()[0])}") from None
    columns = [[_as_text(value) for value in column.to_pylist()] for column in table.columns]
    return Table([list(row) for row in zip(*columns, strict=True)], table.column_names, 1)


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


def _roles(path: Path, table: Table, data: DataConfig) -> tuple[int, int, int | None]:
    """Places of the columns with the file, the label and the split (None without)."""
    file, label = _column(table.columns, FILE, data.image_column), _column(table.columns, LABEL, data.label_column)
    if file is None and label is None and table.first == 1 and len(table.columns) == 2:
        return 0, 1, None  # no header
    if file is None and label is not None:  # a column that is called otherwise, but names pictures
        file = next((i for i in range(len(table.columns)) if _names_pictures(path, table, i)), None)
    listed = ", ".join(map(shown, table.columns))
    for place, what, key in ((file, "file", "image_column"), (label, "label", "label_column")):
        if place is None:
            onehot = _one_hot(table)
            several = (
                f"; {few(onehot)} look like one column for each class, put the class's name into one" if onehot else ""
            )
            raise UserError(
                f"{shown(path)} has no column for the {what} (columns: {listed}); name it with data.{key}=..., or call "
                f"it {what}{several}"
            )
    assert file is not None
    assert label is not None
    return file, label, _column(table.columns, SPLIT, None)


def _column(columns: Sequence[str], names: Sequence[str], asked: str | None) -> int | None:
    """Place of the column that is asked for, or of the first that is called by one of some names."""
    if asked is not None:
        return list(columns).index(asked) if asked in columns else None
    plain = [_plain(column) for column in columns]
    return next((plain.index(name) for name in names if name in plain), None)


def _is_called(column: str, names: Sequence[str]) -> bool:
    return _plain(column) in names


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _names_pictures(path: Path, table: Table, place: int) -> bool:
    cells = [row[place] for row in table.rows[:_TRIED] if place < len(row)]
    return bool(cells) and all(cell is not None and kind_of_file(cell) is FileKind.PICTURE for cell in cells)


def _one_hot(table: Table) -> list[str]:
    """Columns that hold nothing but 0 and 1."""
    return [
        name
        for place, name in enumerate(table.columns)
        if table.rows
        and all(place < len(row) and row[place] in ("0", "1", "0.0", "1.0") for row in table.rows[:_TRIED])
    ]


def _unique(
    path: Path, table: Table, file: int, label: int, split: int | None, passed_over: PassedOver
) -> list[tuple[str, str, str]]:
    """(file, label, split) of each row, each file once.

    Raises:
        UserError: A row lacks its file, label or split, or a file has two labels.
    """
    flags = None if split is None else _FLAGS.get(_plain(table.columns[split]))
    seen: dict[tuple[str, str], str] = {}
    rows = []
    for line, row in enumerate(table.rows, start=table.first):
        cells = []
        for place, what in ((file, "file"), (label, "label"), (split, "split")):
            cell = "" if place is None else row[place] if place < len(row) else None
            if cell is None:
                raise UserError(f"{shown(path)}, row {line}, has no {what}; fill it, or remove the row")
            cells.append(cell)
        name, own, part = cells
        part = part if flags is None else flags[part.lower() in _YES]
        before = seen.get((name, part))
        if before is None:
            seen[name, part] = own
            rows.append((name, own, part))
        elif before == own:
            passed_over.add(REPEATED, name)
        else:
            raise UserError(
                f"{shown(path)}, row {line}, says that {shown(name)} is {shown(own)}, and another row that it is "
                f"{shown(before)}; an image needs one class"
            )
    if not rows:
        raise UserError(f"{shown(path)} has a header and no rows")
    return rows


def _finder(path: Path, names: Sequence[str]) -> tuple[Callable[[str], str], str]:
    """How a file is found by what a row calls it, and where that is, for people.

    Raises:
        UserError: The files of the first rows are nowhere.
    """
    root = path.parent
    tried = names[:: max(1, len(names) // _TRIED)][:_TRIED]
    for folder in ("", path.stem, "images", "imgs", f"{path.stem}_images"):
        place = root / folder
        if folder and not place.is_dir():
            continue
        where = f" (below {folder}/)" if folder else ""
        if any(_is_there(place, name) for name in tried):
            return lambda name, folder=folder: os.path.join(folder, _slashes(root / folder, name)), where
        by_stem = {os.path.splitext(entry)[0]: entry for entry in _pictures_in(place)}
        if any(name in by_stem for name in tried):
            text = f"{where} without its ending"
            return lambda name, folder=folder, known=by_stem: os.path.join(folder, known.get(name, name)), text
    if "://" in names[0]:
        raise UserError(f"{shown(path)} lists {shown(names[0])}; pictures are not downloaded: fetch them first")
    raise UserError(
        f"{shown(path)} lists {shown(names[0])}, which is not in {shown(root)} (nor in {shown(path.stem)}/ or images/ "
        "there); paths are relative to the table"
    )


def _is_there(folder: Path, name: str) -> bool:
    return os.path.isfile(os.path.join(folder, _slashes(folder, name)))


def _slashes(folder: Path, name: str) -> str:
    """A path as this system writes it, also one that was written on Windows."""
    if "\\" in name and not os.path.exists(os.path.join(folder, name)):
        return name.replace("\\", "/")
    return name


def _pictures_in(folder: Path) -> Iterator[str]:
    with os.scandir(folder) as entries:
        yield from (entry.name for entry in entries if ending_of(entry.name) in picture_endings())
