"""Parquet files as nobody should write them: one line that names the file or the column, or the pictures in them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from illama.cli.main import main
from illama.data.decode.images import BrokenImage
from illama.data.layout import open_source
from illama.errors import UserError
from illama.recipes import DataConfig

pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
NAMES = {"info": {"features": {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["a", "b"]}}}}


def png(level: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), level, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write(file: Path, label: Any, image: Any = None, about: object = None, **how: Any) -> Path:
    """A file of pictures with a label column, and a `huggingface` entry where there is one."""
    image = [{"bytes": png(i), "path": None} for i in range(len(label))] if image is None else image
    table = pa.table({"image": image, "label": label})
    if about is not None:
        table = table.replace_schema_metadata({"huggingface": about if isinstance(about, bytes) else json.dumps(about)})
    pq.write_table(table, file, **how)
    return file


def source(path: Path) -> Any:
    return open_source(DataConfig(path=str(path)), "train", in_chans=1)


def changed(**feature: object) -> dict[str, Any]:
    features = json.loads(json.dumps(NAMES))
    features["info"]["features"]["label"] |= feature
    return features


@pytest.mark.parametrize(
    "about",
    [
        *(
            b"\xff\xfe",
            b"{",
            b"[" * 100_000,
            b"[]",
            b"null",
            b'"x"',
            b'{"info": 3}',
            b'{"info": {"features": [1]}}',
            b"",
        ),
        changed(names=None),
        {"info": {"features": {"label": 7, "image": None}}},
        {"info": {"features": {}}},
    ],
)
def test_an_entry_that_describes_nothing_is_left_out(tmp_path: Path, about: object) -> None:
    images = source(write(tmp_path / "train.parquet", [0, 1, 1], about=about))
    assert images.classes == ("0", "1")
    assert images.read(2).getpixel((0, 0)) == 2


@pytest.mark.parametrize("names", [3, "ab", [1, None], {"a": "b"}, {"0": 1, "1": 2}, [["a"], ["b"]], {"-1": "a"}, True])
def test_classes_that_are_no_list_of_names(tmp_path: Path, names: object) -> None:
    write(tmp_path / "train.parquet", [0, 1, 1], about=changed(names=names))
    with pytest.raises(UserError, match=r"classes of column label are .*expected a list of names") as caught:
        source(tmp_path / "train.parquet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (pa.array([0, 1, 1], pa.uint64()), ("0", "1")),
        (pa.array([0, 1, 1], pa.int8()), ("0", "1")),
        (pa.array(["x", "y", "y"]).dictionary_encode(), ("x", "y")),
        (pa.array([0, 1, 1]).dictionary_encode(), ("0", "1")),
        (pa.array(["x", "y", "y"], pa.large_string()), ("x", "y")),
        (pa.array(["x", "y", "y"], pa.string_view()), ("x", "y")),
        (pa.array([b"x", b"\xff", b"\xff"]), ("\\xff", "x")),
    ],
)
def test_types_of_labels_that_are_read(tmp_path: Path, label: Any, classes: tuple[str, ...]) -> None:
    images = source(write(tmp_path / "train.parquet", label))
    assert images.classes == classes
    assert [images.classes[number] for number in images.labels[1:]] == [images.classes[images.labels[1]]] * 2


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (pa.array([0, 1, 2**64 - 1], pa.uint64()), "label 18446744073709551615 is no class number"),
        (pa.array([0, 1, 2**63], pa.uint64()), "label 9223372036854775808 is no class number"),
        (pa.array([0, 1, 300_000_000]), "label 300000000 is no class number"),
        (pa.array([0, -(2**63), 1]), "label -9223372036854775808 is no class number"),
        (pa.array([0, -1, 1]), "label -1"),
        (pa.array(["x", None, "y"]).dictionary_encode(), "1 rows have no label"),
        (pa.array([None, None, None]), "3 rows have no label"),
        (pa.array([0.0, float("nan"), 1.0]), "labels are double, expected whole numbers or names"),
        (pa.array([True, False, True]), "labels are bool"),
        (pa.array([0, 1, 2], pa.timestamp("ns")), "labels are timestamp"),
        (pa.array([[0], [1], [0, 1]]), "a row has several labels"),
        (pa.array([{"a": 0}, {"a": 1}, None]), "1 rows have no label|several labels"),
        (pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int64())), "several labels"),
        (pa.array([[[0]]] * 3), "several labels"),
    ],
)
def test_types_of_labels_that_are_refused(tmp_path: Path, label: Any, words: str) -> None:
    write(tmp_path / "train.parquet", label)
    with pytest.raises(UserError, match=words) as caught:
        source(tmp_path / "train.parquet")
    assert "train.parquet" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (pa.table({"image": [png()]}), "train-00001-of-00002.parquet has no column label"),
        (pa.table({"label": [1]}), "train-00001-of-00002.parquet has no column image"),
        (pa.table({"image": [png()], "label": ["b"]}), "column label holds string, and that of .* int64"),
        (pa.table({"image": ["x.png"], "label": [1]}), "column image holds string, and that of .* binary"),
        (pa.table({"image": [png()], "label": [[1]]}), "column label holds list<element: int64>"),
        (b"nothing of the kind", "train-00001-of-00002.parquet cannot be read as parquet"),
    ],
)
def test_a_later_file_that_is_of_another_kind(tmp_path: Path, second: Any, words: str) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", [0, 1], [png(), png()])
    later = tmp_path / "train-00001-of-00002.parquet"
    later.write_bytes(second) if isinstance(second, bytes) else pq.write_table(second, later)
    with pytest.raises(UserError, match=words):
        source(tmp_path)


def _page_of_pictures(content: bytes) -> bytes:
    rest = png(1)[37:]  # from the second chunk's name on
    assert rest in content
    return content.replace(rest, b"\0" * len(rest))


def _page_of_labels(content: bytes) -> bytes:
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(2)
    start = column.dictionary_page_offset or column.data_page_offset
    return content[:start] + b"\xff" * column.total_compressed_size + content[start + column.total_compressed_size :]


def _page_header(content: bytes) -> bytes:
    column = pq.read_metadata(io.BytesIO(content)).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    return content[:start] + b"\xff" * 30 + content[start + 30 :]


@pytest.mark.parametrize("damage", [_page_of_labels, lambda content: content[:-50], lambda content: content[-50:]])
def test_damaged_files_are_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    file = write(tmp_path / "train.parquet", [0, 1, 1])
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=r"train.parquet.* cannot be read as parquet|no class number"):
        source(file)


@pytest.mark.parametrize("damage", [_page_of_pictures, _page_header])
def test_damaged_pictures_are_broken_pictures(
    tmp_path: Path, damage: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    """As a damaged file of a folder is one; the check counts them, and says where they are."""
    how = {"compression": "none", "use_dictionary": False}
    file = write(tmp_path / "train.parquet", ["a", "b"] * 3, row_group_size=2, **how)
    file.write_bytes(damage(file.read_bytes()))
    images = source(file)
    images.prepare()
    with pytest.raises(BrokenImage, match=r"train.parquet row [01]"):
        [images.read(i) for i in range(2)]
    assert images.read(5).getpixel((0, 0)) == 5
    assert main(["data", "check", str(file), "--workers", "1"]) == 2
    assert "of 6 images are broken" in capsys.readouterr().err


def test_files_without_rows(tmp_path: Path) -> None:
    for number, kind in enumerate((pa.int64(), pa.string(), pa.null())):
        file = write(tmp_path / f"train-{number}.parquet", pa.array([], kind), pa.array([], pa.binary()))
        with pytest.raises(UserError, match="it has no rows"):
            source(file)


def test_a_list_of_files_in_a_damaged_table(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png())
    file = tmp_path / "list.parquet"
    pq.write_table(pa.table({"file": ["0.png"], "label": ["a"], "split": ["train"]}), file)
    assert len(source(file)) == 1
    content = file.read_bytes()
    for damage in (content[:4] + b"\xff" * 30 + content[34:], content[:-20], content[10:]):
        file.write_bytes(damage)
        with pytest.raises(UserError, match=r"list.parquet cannot be read as parquet"):
            source(file)
    pq.write_table(pa.table({"file": pa.array([], pa.string()), "label": pa.array([], pa.string())}), file)
    with pytest.raises(UserError, match=r"list\.parquet.* no rows"):
        source(file)
