"""Parquet files in the Hugging Face image layout: train-00000-of-00003.parquet with an image and a label column.

The split stands in the file's name or in that of a folder above it, as `datasets` and the hub's converter write it:
data/train-00000-of-1.parquet, plain_text/train-00000-of-1.parquet, default/train/0000.parquet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from illama.console.json_text import parse_json
from illama.console.text import shown
from illama.data.layout import Layout, needed_folder, needed_path
from illama.data.source import MOST_CLASSES, Source
from illama.data.sources.class_names import composed, few
from illama.data.sources.formats import pointer_hint
from illama.data.sources.parquet_source import ParquetSource, RowGroups, is_picture_text
from illama.data.sources.splits import (
    is_split_column,
    is_split_folder,
    split_column,
    split_in_name,
    split_of_path,
    split_order,
    whole_or_splits,
)
from illama.data.sources.table import import_pyarrow, reading_parquet, text_of
from illama.data.sources.walk import NO_PICTURES, Listing, PassedOver, Reason
from illama.errors import UserError

if TYPE_CHECKING:
    from illama.recipes.schema import DataConfig

# Encoded images of a split up to this many bytes stay in memory; beyond, row groups are read when needed.
HELD_BYTES = 4 << 30


def look_at_parquet(data: DataConfig, listing: Listing | None) -> Layout:
    """The layout of a folder of parquet files, or of a single one; a table of file names is a manifest.

    Raises:
        UserError: There are none, or several sets of them.
    """
    path = needed_path(data)
    if path.is_file():
        by_split, passed_over = _by_split([path.name]), None
        root = path.parent
    else:
        listing = needed_folder(data, listing, "of parquet files")
        root, files = path, _one_set(listing)
        by_split = _by_split(files)
        passed_over = PassedOver(dict(listing.passed_over.reasons))
        kept = passed_over.reasons.get(NO_PICTURES)
        if kept is not None:
            passed_over.reasons[NO_PICTURES] = Reason(kept.count - len(files), kept.examples)
        if listing.pictures:
            passed_over.add("pictures beside the parquet files", listing.pictures[0], len(listing.pictures))
    paths = {split: [root / file for file in files] for split, files in by_split.items()}
    schema = _schema(next(iter(paths.values()))[0])
    if path.is_file():
        from illama.data.sources.manifest import is_manifest, look_at_manifest

        images = _image_columns(schema, _features(schema), data.image_column)
        if is_manifest(schema.names, data) and not (images and _is_embedded(path, images[0])):
            return look_at_manifest(data, None)
    return ParquetLayout(data, path, whole_or_splits(paths, data.train_split, data.eval_split), passed_over)


class ParquetLayout(Layout):
    """Parquet files by split; "" for those that belong to none."""

    def __init__(
        self, data: DataConfig, path: Path, files: dict[str, list[Path]], passed_over: PassedOver | None
    ) -> None:
        self._files, self._rows_of = files, None if list(files) != [""] else _split_rows(files[""], data, shown(path))
        splits = list(self._rows_of[1]) if self._rows_of else [split for split in files if split]
        notes = [f"column {shown(self._rows_of[0])} is the split"] if self._rows_of else []
        super().__init__(data, "parquet", shown(path), splits, passed_over, notes)
        for own in files.values():
            self.note_missing(own)
        self.how_to_split = "name the files for splits (train.parquet, val.parquet)"

    def read(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> Source:
        source = super().read(split, in_chans, classes)
        assert isinstance(source, ParquetSource)
        if not source.held:
            source.description += (
                f"; {source.rows.bytes / 2**30:.1f} GiB stay on disk, and a shuffled read takes a whole row group per "
                "image"
            )
        return source

    def read_split(self, split: str | None, in_chans: int, classes: Sequence[str] | None) -> ParquetSource:
        files, pyarrow = self._files["" if self._rows_of else split or ""], import_pyarrow()
        what = self.name_of(split)
        schema = _schema(files[0])
        features = _features(schema)
        image_column, label_column = self._columns(schema, features, files[0])
        _demand_same(files, schema, features, image_column, label_column)
        rows = RowGroups(files, image_column)
        chosen = None if split is None or not self._rows_of else self._rows_of[1][split]
        with reading_parquet(what):
            labels = pyarrow.chunked_array(
                [chunk for file in files for chunk in _column(file, label_column).chunks],
                schema.field(label_column).type,
            )
            labels = labels if chosen is None else labels.take(chosen)
        if not len(labels):
            raise UserError(f"{what}: it has no rows; give the files that hold the images")
        if len(labels) != len(rows if chosen is None else chosen):
            raise UserError(f"{what}: {len(labels)} labels for {len(rows)} rows; the file is damaged, fetch it again")
        feature = features.get(label_column, {})
        names, numbers = _numbered(labels, feature, f"{self.where}, column {shown(label_column)}")
        if feature.get("names") is None and classes is None:
            self._note_absent(names, numbers)
        return ParquetSource(
            rows=rows,
            shape=_shape(schema, features, image_column),
            held=rows.bytes <= HELD_BYTES,
            chosen=chosen,
            classes=tuple(names),
            labels=numbers,
            in_chans=in_chans,
            description=f"parquet {what}",
        )

    def _columns(self, schema: Any, features: dict[str, Any], file: Path) -> tuple[str, str]:
        """Names of the image and the label column."""
        images = _image_columns(schema, features, self.data.image_column)
        labels = _label_columns(schema, features, self.data.label_column)
        for what, key, columns in (
            ("image (image, img)", "image_column", images),
            ("label (label, labels, class, target)", "label_column", labels),
        ):
            if not columns:
                asked = getattr(self.data, key)
                raise UserError(
                    f"{shown(file)} has no {what} column{'' if asked is None else f' {asked!r}'}; its columns: "
                    f"{', '.join(map(shown, schema.names))}; name it with data.{key}=..."
                )
            if len(set(columns)) > 1:
                others = ", ".join(dict.fromkeys(map(shown, columns[1:])))
                self.note(f"column {shown(columns[0])} is taken; there are also {others} (data.{key}=...)")
        return images[0], labels[0]

    def _note_absent(self, names: list[str], numbers: np.ndarray) -> None:
        present = np.bincount(numbers[numbers >= 0], minlength=len(names))
        absent = [names[c] for c in np.flatnonzero(present[: len(names)] == 0)]
        if absent:
            verb = "never occurs" if len(absent) == 1 else "never occur"
            plural = "class" if len(absent) == 1 else "classes"
            self.note(f"the labels are numbers without names, and {plural} {few(absent)} {verb}")


def _one_set(listing: Listing) -> list[str]:
    """The files that belong together: those in the folder itself, in data/, or in the one folder that has some.

    Raises:
        UserError: There are none, or several folders have files of a split.
    """
    files = listing.holding(".parquet")
    if not files:
        raise UserError(f"{shown(listing.root)} has no *.parquet files")
    sets: dict[str, list[str]] = {}
    for file in files:
        sets.setdefault(_set_of(file), []).append(file)
    named = [name for name, own in sets.items() if any(split_of_path(file) for file in own)]
    if len(sets) > 1 and len(named) == 1:  # a preview beside data/train-00000-of-00001.parquet
        return sets[named[0]]
    for name in ("", "data"):
        if name in sets and not named:
            return sets[name]
    if len(sets) > 1:
        raise UserError(
            f"{shown(listing.root)} has several sets of parquet files ({few([name or '.' for name in sets])}); give "
            f"one of them: data.path={shown(listing.root)}/{shown(next(name for name in sets if name))}"
        )
    return files


def _set_of(file: str) -> str:
    """The folder of the set that a file belongs to: the one above its split's."""
    folders = file.split("/")[:-1]
    while folders and is_split_folder(folders[-1]):
        folders.pop()
    return "/".join(folders)


def _by_split(files: Sequence[str]) -> dict[str, list[str]]:
    """Files by split, "" where neither their names nor their folders tell one."""
    by_split: dict[str, list[str]] = {}
    for file in files:
        own = split_in_name(file.rpartition("/")[2])
        unnamed = re.fullmatch(r"(part|data|chunk|shard|file|table)?[-_.]?\d*(-of-\d+)?", own) is not None
        by_split.setdefault(split_of_path(file) or ("" if unnamed else own), []).append(file)
    return {split: by_split[split] for split in split_order(by_split)}


def _split_rows(files: Sequence[Path], data: DataConfig, where: str) -> tuple[str, dict[str, np.ndarray]] | None:
    """The column that tells the splits of files whose names tell none, and the rows of each; None without."""
    names = [name for name in _schema(files[0]).names if is_split_column(name)]
    if not names:
        return None
    for file in files[1:]:
        lacking = [name for name in names if name not in _schema(file).names]
        if lacking:
            raise UserError(f"{shown(file)} has no column {shown(lacking[0])}, and {shown(files[0])} has")
    with reading_parquet(where):
        cells = {
            name: [text_of(value) for file in files for value in _column(file, name).to_pylist()] for name in names
        }
    column = split_column(cells, (data.train_split, data.eval_split), where)
    if column is None:
        return None
    own = cells[column[0]]
    if None in own:
        raise UserError(f"{where}, row {own.index(None) + 1}, has no split (column {shown(column[0])})")
    splits = np.array([column[1](str(cell)) for cell in own], dtype=object)
    return column[0], {split: np.flatnonzero(splits == split) for split in sorted(set(splits))}


def _column(file: Path, name: str) -> Any:
    """A column of one file; not of several together, whose types need not be the same."""
    with import_pyarrow().parquet.ParquetFile(file) as opened:
        return opened.read(columns=[name], use_threads=False).column(name)


def _is_embedded(file: Path, column: str) -> bool:
    """Whether a column holds pictures, and not the names of files."""
    pyarrow = import_pyarrow()
    kind = _schema(file).field(column).type
    kind = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
    if not any(
        is_text(kind)
        for is_text in (pyarrow.types.is_string, pyarrow.types.is_large_string, pyarrow.types.is_string_view)
    ):
        return True
    with reading_parquet(shown(file)), pyarrow.parquet.ParquetFile(file) as opened:
        rows = next(opened.iter_batches(batch_size=1, columns=[column], use_threads=False), None)
        return rows is not None and len(rows) > 0 and is_picture_text(rows.column(0)[0].as_py() or "")


def _demand_same(files: Sequence[Path], schema: Any, features: dict[str, Any], *columns: str) -> None:
    """All files of a split have the columns of the first, and number the classes as it does.

    Raises:
        UserError: One has not; it is named.
    """
    for file in files[1:]:
        other = _schema(file)
        for column in columns:
            if column not in other.names:
                raise UserError(
                    f"{shown(file)} has no column {shown(column)}, and {shown(files[0])} has; its columns: "
                    f"{', '.join(map(shown, other.names))}"
                )
            kinds = [_plain_kind(one.field(column).type) for one in (schema, other)]
            if kinds[0] != kinds[1]:
                raise UserError(
                    f"{shown(file)}: column {shown(column)} holds {shown(kinds[1], 80)}, and that of "
                    f"{shown(files[0])} {shown(kinds[0], 80)}; write both alike"
                )
            names, own = (one.get(column, {}).get("names") for one in (features, _features(other)))
            if names != own:
                raise UserError(
                    f"{shown(file)} numbers the classes differently from {shown(files[0])} (column {shown(column)}): "
                    "they are of two data sets, or of two versions of one"
                )


def _schema(file: Path) -> Any:
    pyarrow = import_pyarrow()
    if not file.is_file():
        raise UserError(f"{shown(file)} is no regular file that is there; give parquet files")
    with reading_parquet(shown(file), pointer_hint(file)):
        return pyarrow.parquet.read_schema(file)


def _features(schema: Any) -> dict[str, Any]:
    """Columns as the `huggingface` entry of the schema describes them; empty where there is none that can be read.

    Of a description no more is taken than what is as `datasets` writes it: `_type`, `shape`, and `names`, which are a
    list of texts, or in older files {"0": text}.

    Raises:
        UserError: Names that number the classes in no way.
    """
    try:
        features = parse_json((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: _feature(name, one) for name, one in features.items() if isinstance(one, dict)}


def _feature(column: str, given: dict[str, Any]) -> dict[str, Any]:
    names, shape = given.get("names"), given.get("shape")
    if isinstance(names, dict) and all(key.isascii() and key.isdigit() and len(key) < 10 for key in names):
        names = [names[key] for key in sorted(names, key=int)]
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise UserError(
            f"the classes of column {shown(column)} are {shown(names, 60)} in the file's huggingface entry, expected a "
            "list of names; write the file again with datasets, or remove the entry"
        )
    is_shape = isinstance(shape, list) and all(isinstance(side, int) and 0 < side < 2**31 for side in shape)
    return {"_type": given.get("_type"), "names": names, "shape": shape if is_shape else None}


def _image_columns(schema: Any, features: dict[str, Any], asked: str | None) -> list[str]:
    """Columns that may hold the pictures, the likeliest first."""
    if asked is not None:
        return [asked] if asked in schema.names else []
    columns = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    return [name for name in (*columns, "image", "img") if name in schema.names]


def _label_columns(schema: Any, features: dict[str, Any], asked: str | None) -> list[str]:
    """Columns that may hold the classes, the likeliest first."""
    if asked is not None:
        return [asked] if asked in schema.names else []
    columns = ["label", "labels", *(name for name, one in features.items() if one.get("_type") == "ClassLabel")]
    return [name for name in (*columns, "fine_label", "class", "target") if name in schema.names]


def _shape(schema: Any, features: dict[str, Any], column: str) -> list[int] | None:
    """Shape of a picture whose pixels lie flat in a cell, by the column's own type or by `datasets`."""
    shape = getattr(schema.field(column).type, "shape", None) or features.get(column, {}).get("shape")
    return [int(side) for side in shape] if shape else None


def _numbered(labels: Any, feature: dict[str, Any], where: str) -> tuple[list[str], np.ndarray]:
    """Class names and class numbers of a label column of numbers or of names."""
    pyarrow = import_pyarrow()
    kind = _plain_kind(labels.type)
    if labels.type != kind:  # a dictionary's own values may be missing, too
        with reading_parquet(where):
            labels = labels.cast(kind)
    if labels.null_count:
        raise UserError(f"{where}: {labels.null_count} rows have no label")
    if pyarrow.types.is_nested(kind):
        raise UserError(f"{where}: a row has several labels ({shown(kind, 80)}); an image needs one class")
    if pyarrow.types.is_integer(kind):
        values = labels.to_numpy()
        least, highest = int(values.min()), int(values.max())
        names = feature.get("names")
        if least < -1 or highest >= 2**63 or (not names and highest >= MOST_CLASSES):
            bad = least if least < -1 else highest
            raise UserError(f"{where}: label {bad} is no class number; allowed: 0 to {MOST_CLASSES - 1}")
        return names or [str(c) for c in range(highest + 1)], values.astype(np.int64)
    if pyarrow.types.is_floating(kind) or pyarrow.types.is_boolean(kind) or pyarrow.types.is_temporal(kind):
        raise UserError(f"{where}: labels are {shown(kind, 80)}, expected whole numbers or names")
    with reading_parquet(where):
        texts = [text_of(value) for value in labels.to_pylist()]
    if None in texts:
        raise UserError(f"{where}: row {texts.index(None) + 1} has no label")
    names, numbers = np.unique([composed(str(text)) for text in texts], return_inverse=True)
    return names.tolist(), numbers


def _plain_kind(kind: Any) -> Any:
    """The type of a column's values: of a dictionary that of its entries."""
    return kind.value_type if import_pyarrow().types.is_dictionary(kind) else kind
