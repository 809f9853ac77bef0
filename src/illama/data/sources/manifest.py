"""A list of files as a data set: a CSV, TSV or Parquet table with a file, a label and maybe a split in each row.

Columns are known by their names (`FILE`, `LABEL`, `splits.split_column`; `data.image_column` and `data.label_column`
say otherwise), and where those are strange by what is in them: a column that names pictures, and the only other one.
Files are looked for below the table's folder; where that does not have them, in the folder that is called like the
table (train.csv: train/) and in images/; and else by their names alone, which need no endings, in all folders there.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from illama.console.text import shown
from illama.data.layout import Layout, needed_path
from illama.data.sources.folder import FolderSource
from illama.data.sources.formats import FileKind, ending_of, kind_of_file
from illama.data.sources.splits import class_order, composed, few, split_column
from illama.data.sources.table import TABLES, Table, plain, read_table
from illama.data.sources.walk import Listing, PassedOver, walk
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

# Names of columns without regard to case and signs, the likeliest first.
FILE = (
    *("file", "filename", "filepath", "filepaths", "path", "image", "imagefile", "imagepath", "imagename", "img"),
    *("imgpath", "photo", "picture", "imageid", "photoid", "imgid", "id", "name", "key"),
)
LABEL = (
    *("label", "labels", "class", "classname", "category", "categoryname", "target", "labelname", "species", "breed"),
    *("y", "classid", "categoryid", "labelid"),
)
REPEATED = "rows that say again what another row says"
_TRIED = 50  # rows that tell what a column holds and where the files lie
_Find = Callable[[str], str]


def is_manifest(columns: Sequence[str], data: DataConfig) -> bool:
    """Whether a table with these columns lists files and their classes."""
    return bool(_columns(columns, FILE, data.image_column) and _columns(columns, LABEL, data.label_column))


def look_at_manifest(data: DataConfig, listing: Listing | None) -> ManifestLayout:
    """The layout that a table of files describes.

    Raises:
        UserError: The table cannot be read, its columns are not understood, a row lacks its file or label, or the files
            are not there.
    """
    path = needed_path(data)
    if not path.is_file() or path.suffix.lower() not in TABLES:
        raise UserError(f"{shown(path)} is not a table of files ({', '.join(TABLES)})")
    asked = [plain(name) for name in (data.image_column, data.label_column) if name]
    return ManifestLayout(data, path, read_table(path, {*FILE, *LABEL, *asked}))


class _Row(NamedTuple):
    """A file with its class and its split, "" where the table tells none."""

    file: str
    label: str
    split: str


class ManifestLayout(Layout):
    """What a table of files describes."""

    def __init__(self, data: DataConfig, path: Path, table: Table) -> None:
        table, files, label = _roles(path, table, data)
        if not table.rows:
            raise UserError(f"{shown(path)} has a header and no rows")
        self._root = str(path.parent)
        file, find, where = _place_of_files(path, table, files)
        others = {name: table.cells(i) for i, name in enumerate(table.columns) if i not in (file, label)}
        split = split_column(others, (data.train_split, data.eval_split), shown(path))
        passed_over = PassedOver()
        rows = _rows(path, table, file, label, split, find, passed_over)
        self._rows = []
        for row in rows:
            if kind_of_file(row.file) is FileKind.UNREAD:
                passed_over.add_unread(ending_of(row.file), row.file)
            else:
                self._rows.append(row)
        columns = f"column {shown(table.columns[file])} is the file{where}, {shown(table.columns[label])} the label"
        columns += "" if split is None else f", {shown(split[0])} the split"
        also = [name for name in table.columns if name != table.columns[label] and plain(name) in LABEL]
        columns += f" (there is also {few(also)}: data.label_column=...)" if also else ""
        super().__init__(data, "list", shown(path), [*{row.split for row in rows if row.split}], passed_over, [columns])
        self.how_to_split = "add a column split (train, val) to the table"

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> FolderSource:
        rows = [row for row in self._rows if split is None or row.split == split]
        if not rows:
            raise UserError(f"list {self.name_of(split)} has no pictures that can be read; {self.passed_over.lost()}")
        names = class_order({row.label for row in rows})
        number = {name: number for number, name in enumerate(names)}
        return FolderSource(
            root=self._root,
            paths=[row.file for row in rows],
            classes=tuple(names),
            labels=np.array([number[row.label] for row in rows], dtype=np.int64),
            in_chans=in_chans,
            description=f"list {self.name_of(split)}",
        )


def _roles(path: Path, table: Table, data: DataConfig) -> tuple[Table, list[int], int]:
    """The table with its header told apart, places of the columns that may hold the file, and that of the label."""
    if not table.has_header and len(table.rows) > 1:
        named = [i for i in range(len(table.columns)) if _names_pictures(table.cells(i)[1:])]
        if any(not _names_pictures([table.rows[0][i]]) for i in named):
            table = table.with_header()
    pictured = [i for i in range(len(table.columns)) if _names_pictures(table.cells(i, _TRIED))]
    files, labels = _columns(table.columns, FILE, data.image_column), _columns(table.columns, LABEL, data.label_column)
    if not files:
        files = [i for i in pictured if i not in labels][:1] or ([] if table.has_header or labels else [0])
    if not labels and data.label_column is None and len(table.columns) == 2 and len(files) == 1:
        labels = [i for i in (0, 1) if i not in (*files, *pictured)]
    if "x" in map(plain, table.columns) and data.label_column is None:  # a place in the picture
        labels = [i for i in labels if plain(table.columns[i]) != "y"]
    for places, what, key in ((files, "file", "image_column"), (labels, "label", "label_column")):
        if not places:
            onehot = [
                name
                for i, name in enumerate(table.columns)
                if table.rows and all(cell in ("0", "1", "0.0", "1.0") for cell in table.cells(i, _TRIED))
            ]
            several = (
                f"; {few(onehot)} look like one column for each class, put the class's name into one" if onehot else ""
            )
            raise UserError(
                f"{shown(path)} has no column for the {what} (columns: {', '.join(map(shown, table.columns))}); name "
                f"it with data.{key}=..., or call it {what}{several}"
            )
    return table, files, labels[0]


def _columns(columns: Sequence[str], names: Sequence[str], asked: str | None) -> list[int]:
    """Places of the column that is asked for, or of those that are called by some names, in the order of the names."""
    if asked is not None:
        return [list(columns).index(asked)] if asked in columns else []
    own = [plain(column) for column in columns]
    return [own.index(name) for name in names if name in own]


def _names_pictures(cells: Sequence[str | None]) -> bool:
    pictures = (FileKind.PICTURE, FileKind.UNREAD)
    return bool(cells) and all(cell is not None and kind_of_file(cell) in pictures for cell in cells[:_TRIED])


def _rows(
    path: Path,
    table: Table,
    file: int,
    label: int,
    split: tuple[str, Callable[[str], str]] | None,
    find: _Find,
    passed_over: PassedOver,
) -> list[_Row]:
    """What the rows say, each file once in a split.

    Raises:
        UserError: A row lacks its file, label or split, has cells too many, or gives a file a second label.
    """
    places = [(file, "file"), (label, "label"), *([(table.columns.index(split[0]), "split")] if split else [])]
    first: dict[str, str] = {}
    rows: dict[_Row, None] = {}
    for line, row in zip(table.lines, table.rows, strict=True):
        if any(row[len(table.columns) :]):
            raise UserError(
                f"{shown(path)}, row {line}, has {len(row)} cells and the table {len(table.columns)} columns; put "
                "quotes around a cell that has a separator in it"
            )
        cells = [(row[place] if place < len(row) else None) for place, _ in places]
        for cell, (_, what) in zip(cells, places, strict=True):
            if cell is None or (what == "label" and cell.lower() == "nan"):  # as pandas writes nothing
                raise UserError(f"{shown(path)}, row {line}, has no {what}; fill it, or remove the row")
            if "\n" in cell or (what == "label" and cell[0] in "[{"):
                raise UserError(
                    f"{shown(path)}, row {line}: {shown(cell, 40)!r} is no {what}; an image needs one class, in one "
                    "line"
                )
        name, own = os.path.normpath(find(str(cells[0]))), composed(str(cells[1]))
        part = "" if split is None else split[1](str(cells[2]))
        before = first.setdefault(name, own)
        if before != own:
            raise UserError(
                f"{shown(path)}, row {line}, says that {shown(str(cells[0]))} is {shown(own)}, and another row that it "
                f"is {shown(before)}; an image needs one class"
            )
        if _Row(name, own, part) in rows:  # a file has one label
            passed_over.add(REPEATED, name)
        rows[_Row(name, own, part)] = None
    return list(rows)


def _place_of_files(path: Path, table: Table, places: Sequence[int]) -> tuple[int, _Find, str]:
    """Place of the column whose files are there, how a file is found by its cell, and where that is, for people.

    Raises:
        UserError: The files are nowhere, or several files are called like that.
    """
    tried = {}
    for place in places:
        cells = [cell for cell in table.cells(place) if cell is not None]
        tried[place] = cells[:: max(1, len(cells) // _TRIED)][:_TRIED]
    for place, cells in tried.items():
        for folder in ("", path.stem, "images", "imgs", f"{path.stem}_images"):
            inside = path.parent / folder
            if (not folder or inside.is_dir()) and any(
                os.path.isfile(inside / _spelled(inside, cell)) for cell in cells
            ):
                where = f" (below {folder}/)" if folder else ""
                return place, lambda cell, inside=inside: str(inside / _spelled(inside, cell)), where
    names = _Names(path)
    for place, cells in tried.items():
        hits = [(cell, name) for cell in cells if (name := names.find(cell)) is not None]
        if hits:
            folders = {os.path.dirname(name) for _, name in hits}
            where = f" (below {shown(folders.pop())}/)" if len(folders) == 1 else " (by its name, in several folders)"
            where += "" if any(ending_of(cell) == ending_of(name) for cell, name in hits) else " without its ending"
            return place, lambda cell: names.find(cell) or cell, where
    first = next((cell for cells in tried.values() for cell in cells), None)
    if first is None:
        raise UserError(f"{shown(path)} names no files")
    if "://" in first:
        raise UserError(f"{shown(path)} lists {shown(first)}; pictures are not downloaded: fetch them first")
    lost = names.passed_over.lost()
    raise UserError(
        f"{shown(path)} lists {shown(first)}, which is not in {shown(path.parent)} nor in a folder there; put the "
        f"table beside the pictures{f'; passed over: {lost}' if lost else ''}"
    )


class _Names:
    """All pictures below a table's folder by the last part of their paths, with and without its ending."""

    def __init__(self, path: Path) -> None:
        self._table = path
        listing = walk(path.parent)
        self.passed_over = listing.passed_over
        self._by_name: dict[str, list[str]] = {}
        for file in listing.pictures:
            name = composed(file.rpartition("/")[2])
            for key in (name, os.path.splitext(name)[0]):
                self._by_name.setdefault(key, []).append(file)

    def find(self, cell: str) -> str | None:
        """The one file that a cell means: the end of its path, or a path whose end it is. None without.

        Raises:
            UserError: There are several.
        """
        wanted = f"/{composed(_local(cell))}"
        matches = []
        for file in self._by_name.get(wanted.rpartition("/")[2], ()):
            own = f"/{composed(file)}"
            if any(one.endswith(wanted) or wanted.endswith(one) for one in (own, os.path.splitext(own)[0])):
                matches.append(file)
        if len(matches) > 1:
            raise UserError(
                f"{shown(self._table)} lists {shown(cell)}, and there are {few(matches)}; write folder and ending into "
                "the table, or put the table beside the pictures"
            )
        return matches[0] if matches else None


def _local(cell: str) -> str:
    """A path as this system writes it, also one that was written on Windows or as a file's address."""
    return os.path.normpath(cell.removeprefix("file://").replace("\\", "/"))


def _spelled(folder: Path, cell: str) -> str:
    """A cell's path in the spelling that the folder has; another file system may decompose letters (NFD)."""
    if cell.isascii() and "\\" not in cell and "://" not in cell:
        return cell
    spellings = [cell, _local(cell), *(unicodedata.normalize(form, _local(cell)) for form in ("NFC", "NFD"))]
    return next((name for name in spellings if os.path.isfile(folder / name)), cell)
