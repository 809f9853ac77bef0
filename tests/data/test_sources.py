"""Every kind of data set: splits, class numbering, labels, and errors that say what to do."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from illama.data.decode.images import BrokenImage
from illama.data.layout import open_source
from illama.data.source import number_classes
from illama.data.sources.named import DigitsSource
from illama.data.sources.splits import choose_split, split_in_name, stratified_choice
from illama.errors import UserError
from illama.recipes import DataConfig

DIGITS = load_digits()


def _png(i: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray((DIGITS.images[i] * 15).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write(root: Path, layout: dict[str, int]) -> Path:
    """Digits as image files: {"train/one": 3} makes three pictures of ones there."""
    names = {"zero": 0, "one": 1, "two": 2, "ten10": 3, "ten9": 4}
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        rows = np.flatnonzero(DIGITS.target == names.get(Path(folder).name, 5))
        for k in range(count):
            (root / folder / f"{k}.png").write_bytes(_png(int(rows[k])))
    return root


def _config(path: Path | None = None, **settings: object) -> DataConfig:
    return DataConfig(path=None if path is None else str(path), **settings)  # type: ignore[arg-type]


# digits

FIRST_HELD_OUT = (4, 5, 6, 9, 14)


def test_digits_splits_are_fixed_and_stratified() -> None:
    train = open_source(_config(name="digits"), "train", in_chans=1, seed=1)
    test = open_source(_config(name="digits"), "eval", in_chans=1, classes=train.classes, seed=2)
    assert (len(train), len(test)) == (1437, 360)
    assert test.classes == train.classes == tuple("0123456789")
    rows = {source.location(i) for source in (train, test) for i in range(len(source))}
    assert len(rows) == 1797
    share = np.bincount(test.labels) / np.bincount(DIGITS.target)
    assert np.abs(share - 360 / 1797).max() < 0.004
    # the split is part of the data set: these rows may never change
    assert [test.location(i) for i in range(5)] == [f"digits row {row}" for row in FIRST_HELD_OUT]
    for i in (0, 200):
        row = int(test.location(i).split()[-1])
        assert test.labels[i] == DIGITS.target[row]
        assert np.array_equal(np.asarray(test.read(i)), np.rint(DIGITS.images[row] * 255 / 16))
    assert open_source(_config(name="digits"), "test").read(0).mode == "RGB"


def test_digits_are_those_of_scikit_learn() -> None:
    for split in ("train", "test"):
        source = open_source(_config(name="digits"), split, in_chans=1)
        assert isinstance(source, DigitsSource)
        assert np.array_equal(source.images, np.rint(DIGITS.images[source.rows] * (255 / 16)).astype(np.uint8))
        assert np.array_equal(source.labels, DIGITS.target[source.rows])


def test_digits_have_no_other_split() -> None:
    with pytest.raises(UserError, match="no split 'val'; splits found: train, test"):
        open_source(_config(name="digits"), "val")


# folders


def test_folder_classes_come_from_training(tmp_path: Path) -> None:
    root = _write(tmp_path, {"train/zero": 2, "train/one": 3, "train/two": 1, "val/two": 2, "val/one": 1})
    train = open_source(_config(root), "train", in_chans=1)
    assert train.classes == ("one", "two", "zero")
    assert np.bincount(train.labels).tolist() == [3, 1, 2]
    val = open_source(_config(root), "eval", in_chans=1, classes=train.classes)
    assert val.classes == train.classes
    for source in (train, val):
        for i in range(len(source)):
            assert Path(source.location(i)).parent.name == source.classes[source.labels[i]]
            row = np.flatnonzero(DIGITS.target == {"zero": 0, "one": 1, "two": 2}[Path(source.location(i)).parent.name])
            expected = (DIGITS.images[row[int(Path(source.location(i)).stem)]] * 15).astype(np.uint8)
            assert np.array_equal(np.asarray(source.read(i)), expected)


def test_folder_finds_other_endings_and_odd_names(tmp_path: Path) -> None:
    root = _write(tmp_path, {"train/one": 1, "train/zwei é 猫": 0})
    Image.new("RGB", (4, 4)).save(root / "train" / "zwei é 猫" / "a b (1).webp")
    Image.new("RGB", (4, 4)).save(root / "train" / "one" / "b.GIF")
    (root / "train" / ".ipynb_checkpoints").mkdir()
    (root / "train" / ".ipynb_checkpoints" / "x.png").write_bytes(_png(0))
    (root / "train" / "notes.txt").write_text("not an image")
    train = open_source(_config(root), "train")
    assert train.classes == ("one", "zwei é 猫")
    assert np.bincount(train.labels).tolist() == [2, 1]
    assert all(train.read(i).mode == "RGB" for i in range(3))


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    root = _write(tmp_path / "a", {"train/one": 1, "val/one": 1})
    with pytest.raises(UserError, match="no split 'test'; splits found: train, val"):
        open_source(_config(root), "test")
    root = _write(tmp_path / "b", {"train/one": 1})
    with pytest.raises(UserError, match=r"no split to evaluate on .*found: train.*val_fraction"):
        open_source(_config(root), "eval", classes=("one",))


def test_folder_without_splits(tmp_path: Path) -> None:
    root = _write(tmp_path, {"one": 10, "two": 20, "train": 5})  # a class may be called "train"
    whole = open_source(_config(root), "eval")
    assert len(whole) == 35
    with pytest.raises(UserError, match=r"nothing is left to evaluate on; give data.val_fraction"):
        open_source(_config(root), "train")
    carved = _config(root, val_fraction=0.2)
    train = open_source(carved, "train", seed=4)
    held = open_source(carved, "eval", classes=train.classes, seed=4)
    assert np.bincount(train.labels).tolist() == [8, 4, 16]
    assert np.bincount(held.labels).tolist() == [2, 1, 4]
    places = [source.location(i) for source in (train, held) for i in range(len(source))]
    assert len(set(places)) == 35
    assert "val_fraction 0.2" in held.description
    other = open_source(carved, "eval", seed=5)
    assert [held.location(i) for i in range(7)] != [other.location(i) for i in range(7)]


# parquet


def _parquet(
    file: Path, rows: list[int], *, names: list[str] | None, label: object = None, column: str = "image"
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    labels = [int(DIGITS.target[i]) for i in rows] if label is None else label
    images = [{"bytes": _png(i), "path": None} for i in rows]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({column: pa.array(images, kind), "label": labels})
    if names is not None:
        features = {column: {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(exist_ok=True)
    pq.write_table(table, file, row_group_size=3)


def test_parquet_rows_files_and_row_groups(tmp_path: Path) -> None:
    names = [f"digit {d}" for d in range(10)]
    _parquet(tmp_path / "train-00000-of-00002.parquet", list(range(7)), names=names, column="img")
    _parquet(tmp_path / "train-00001-of-00002.parquet", list(range(7, 12)), names=names, column="img")
    _parquet(tmp_path / "test-00000-of-00001.parquet", [20, 21], names=names[::-1], column="img")
    train = open_source(_config(tmp_path), "train", in_chans=1)
    assert train.classes == tuple(names)
    assert train.labels.tolist() == DIGITS.target[:12].tolist()
    for i in range(12):
        assert np.array_equal(np.asarray(train.read(i)), (DIGITS.images[i] * 15).astype(np.uint8))
    assert train.location(8).endswith("train-00001-of-00002.parquet row 1")
    again = pickle.loads(pickle.dumps(train))  # a spawned worker gets it like this
    assert again.read(8).tobytes() == train.read(8).tobytes()
    # the other split numbers its classes the other way round; names decide
    test = open_source(_config(tmp_path), "auto", in_chans=1, classes=train.classes)
    assert test.labels.tolist() == [9 - DIGITS.target[20], 9 - DIGITS.target[21]]


def test_parquet_keeps_few_row_groups_of_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("illama.data.sources.parquet.HELD_BYTES", 0)
    monkeypatch.setattr("illama.data.sources.parquet.CACHED_ROW_GROUPS", 2)
    _parquet(tmp_path / "train.parquet", list(range(20)), names=None)
    train = open_source(_config(tmp_path / "train.parquet"), "train", in_chans=1)
    assert "on disk" in train.description
    for i in (19, 0, 7, 3, 12, 19, 1):
        assert np.array_equal(np.asarray(train.read(i)), (DIGITS.images[i] * 15).astype(np.uint8))
    assert len(train.rows._held) == 2  # type: ignore[attr-defined]
    assert train.classes == tuple("0123456789")


def test_a_broken_cell_is_named_by_its_row(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [{"bytes": b"text", "path": None}], "label": [0]}), tmp_path / "test.parquet")
    with pytest.raises(BrokenImage, match=r"test.parquet row 0: not an image"):
        open_source(_config(tmp_path), "test").read(0)


def test_cifar10(shared_data: Path) -> None:
    config = _config(shared_data / "cifar10", max_train_images=500)
    train = open_source(config, "train", seed=0)
    assert train.classes[6] == "frog"
    assert np.bincount(train.labels).tolist() == [50] * 10
    assert "500 of 50000 chosen by seed 0" in train.description
    test = open_source(config, "eval", classes=train.classes)
    assert len(test) == 10_000
    assert test.read(17).size == (32, 32)


# shards and names of timm


def _shard(file: Path, rows: list[int], extra: dict[str, bytes] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        members = {}
        for i in rows:
            members[f"part/{i:05}.png"] = _png(i)
            members[f"part/{i:05}.cls"] = str(DIGITS.target[i]).encode()
        for name, content in {**members, **(extra or {})}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def test_shards_by_position(tmp_path: Path) -> None:
    _shard(tmp_path / "train-000.tar", list(range(6)))
    _shard(tmp_path / "train-001.tar", list(range(6, 10)), {"z.jpeg": _png(10), "z.json": b'{"label": 3}'})
    _shard(tmp_path / "val" / "0.tar", [30])
    train = open_source(_config(tmp_path, name="wds/digits"), "train", in_chans=1)
    assert train.labels.tolist() == [*DIGITS.target[:10].tolist(), 3]
    assert train.classes == tuple("0123456789")
    for i in (10, 0, 7):
        assert np.array_equal(np.asarray(train.read(i)), (DIGITS.images[i] * 15).astype(np.uint8))
    assert train.location(7) == f"{tmp_path / 'train-001.tar'}:part/00007.png"
    val = open_source(_config(tmp_path, name="wds/digits"), "eval", classes=train.classes)
    assert val.labels.tolist() == [DIGITS.target[30]]
    some = open_source(_config(tmp_path, name="wds/some", train_split="train-{001..001}.tar|5"), "train")
    assert len(some) == 5


def test_shards_as_timm_lists_them(tmp_path: Path) -> None:
    _shard(tmp_path / "x.tar", [0, 1])
    info = {"splits": {"train": {"filenames": ["x.tar"], "num_samples": 2, "shard_lengths": [2], "name": "train"}}}
    (tmp_path / "_info.json").write_text(json.dumps(info))
    (tmp_path / "classes.txt").write_text("null\neins\n")
    train = open_source(_config(tmp_path, name="wds/x"), "train")
    assert (train.classes, train.labels.tolist()) == (("null", "eins"), [0, 1])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _shard(tmp_path / "train-0.tar", [0])
    with pytest.raises(UserError, match=r"train-1.tar does not exist \(2 of 2 are missing\)"):
        open_source(_config(tmp_path, name="wds/x"), "train-{1..2}.tar")


def test_torchvision_set(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    with pytest.raises(UserError, match=r"torch/cifar10 cannot be read from data.path"):
        open_source(_config(tmp_path, name="torch/cifar10"), "train")
    root = _write(tmp_path / "own", {"train/one": 2, "train/two": 1, "val/two": 1})
    train = open_source(_config(root, name="torch/image_folder"), "train", in_chans=1)
    assert (train.classes, train.labels.tolist()) == (("one", "two"), [0, 0, 1])
    assert train.read(2).mode == "L"
    assert train.location(2).endswith("train/two/0.png")
    val = open_source(_config(root, name="torch/image_folder"), "auto", classes=train.classes)
    assert val.labels.tolist() == [1]
    with pytest.raises(UserError, match="torch/nothing"):
        open_source(_config(root, name="torch/nothing"), "train")


def test_hub_data_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "illama\[hub-data\]"'):
        open_source(_config(name="hfds/cifar10"), "train")


@pytest.mark.parametrize("name", ["hfids/x", "tfds/x"])
def test_streams_without_positions_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="a stream without positions"):
        open_source(_config(name=name), "train")


# common


def test_missing_paths_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"/nope does not exist"):
        open_source(_config(tmp_path / "nope"), "train")
    with pytest.raises(UserError, match=r"needs a path; give data.path=FOLDER"):
        open_source(_config(name="folder"), "train")
    with pytest.raises(UserError, match="is not a data set"):
        open_source(_config(tmp_path), "train")
    with pytest.raises(UserError, match="in_chans is 2"):
        open_source(_config(name="digits"), "train", in_chans=2)


def test_class_names_must_differ() -> None:
    with pytest.raises(UserError, match="two classes named 'a'"):
        number_classes(["a", "b", "a"], np.zeros(1), None, "here")


def test_stratified_choice_keeps_shares() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 7])
    chosen = stratified_choice(labels, 40, seed=3)
    assert np.bincount(labels[chosen]).tolist() in ([25, 13, 2], [26, 12, 2], [25, 12, 3], [26, 13, 1])
    assert len(np.unique(chosen)) == 40
    assert np.array_equal(chosen, stratified_choice(labels, 40, seed=3))
    assert not np.array_equal(chosen, stratified_choice(labels, 40, seed=4))
    assert len(stratified_choice(labels, 1000, seed=0)) == 157


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train-00000-of-00003.parquet", "train"),
        ("test.parquet", "test"),
        ("train-00000-of-00002-0f3a9c.parquet", "train"),
        ("imagenet-train-0001.tar", "imagenet-train"),
        ("validation-7.tar", "validation"),
    ],
)
def test_split_in_name(file: str, split: str) -> None:
    assert split_in_name(file) == split


def test_split_choice() -> None:
    assert choose_split("auto", ["test", "train", "val"], "x") == "val"
    assert choose_split("train", ["training"], "x") == "training"
    assert choose_split("validation", ["val", "valid"], "x") == "val"
    with pytest.raises(UserError, match="x has no split 'dev'; splits found: train"):
        choose_split("dev", ["train"], "x")


def test_hub_data_from_local_parquet(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    names = [f"digit {d}" for d in range(10)]
    _parquet(tmp_path / "set" / "train-00000-of-00001.parquet", list(range(6)), names=names, column="img")
    _parquet(tmp_path / "set" / "test-00000-of-00001.parquet", [20], names=names, column="img")
    config = _config(tmp_path / "cache", name=f"hfds/{tmp_path / 'set'}")
    train = open_source(config, "train", in_chans=1)
    assert (train.classes, train.labels.tolist()) == (tuple(names), DIGITS.target[:6].tolist())
    assert np.array_equal(np.asarray(train.read(4)), (DIGITS.images[4] * 15).astype(np.uint8))
    assert len(open_source(config, "eval", classes=train.classes)) == 1
    with pytest.raises(UserError, match="no split 'val2'; splits found: test, train"):
        open_source(config, "val2")


# files as they are stored


def test_every_kind_of_source_hands_out_its_files(tmp_path: Path) -> None:
    """What is decoded from the stored file equals what is read, of every source that keeps files."""
    folder = _write(tmp_path / "folder", {"train/zero": 3, "train/one": 2})
    _parquet(tmp_path / "p" / "train.parquet", list(range(5)), names=None)
    _shard(tmp_path / "w" / "train-000.tar", list(range(4)))
    configs = [
        _config(folder),
        _config(tmp_path / "p"),
        _config(tmp_path / "w", name="wds/x"),
        _config(folder, name="torch/image_folder"),
        _config(folder, max_train_images=2),
    ]
    for config in configs:
        for in_chans in (1, 3):
            source = open_source(config, "train", in_chans=in_chans)
            assert source.in_chans == in_chans
            for i in range(len(source)):
                stored = source.encoded(i)
                assert stored is not None
                assert stored.startswith(b"\x89PNG")
                assert np.array_equal(np.asarray(source.picture(i).image()), np.asarray(source.read(i)))
    digits = open_source(_config(name="digits"), "train", in_chans=1)
    assert digits.encoded(3) is None
    assert np.array_equal(np.asarray(digits.picture(3).image()), np.asarray(digits.read(3)))


def test_a_vanished_file_is_a_broken_image(tmp_path: Path) -> None:
    source = open_source(_config(_write(tmp_path, {"train/zero": 2})), "train")
    (tmp_path / "train/zero/1.png").unlink()
    for read in (source.read, source.picture, source.encoded):
        with pytest.raises(BrokenImage, match=r"zero/1\.png: No such file"):
            read(1)
    (tmp_path / "train/zero/0.png").write_bytes(_png(0)[:80])
    with pytest.raises(BrokenImage, match=r"zero/0\.png"):
        source.read(0)
    (tmp_path / "train/zero/0.png").write_bytes(b"")
    with pytest.raises(BrokenImage, match=r"zero/0\.png: the file is empty"):
        source.picture(0)


def test_shards_stay_open_but_not_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(4):
        _shard(tmp_path / f"train-{n}.tar", [n, n + 10])
    source = open_source(_config(tmp_path, name="wds/x"), "train", in_chans=1)
    expected = [source.encoded(i) for i in range(8)]
    again = pickle.loads(pickle.dumps(source))
    monkeypatch.setattr("illama.data.sources.shards.OPEN_FILES", 2)
    assert [again.encoded(i) for i in (7, 0, 3, 5, 1, 6, 2, 4)] == [expected[i] for i in (7, 0, 3, 5, 1, 6, 2, 4)]
    assert len(again._files._open) == 2
    with ThreadPoolExecutor(4) as pool:
        many = [i % 8 for i in range(400)]
        assert list(pool.map(again.encoded, many)) == [expected[i] for i in many]
    (tmp_path / "train-3.tar").unlink()
    with pytest.raises(BrokenImage, match=r"train-3\.tar:.*No such file"):
        pickle.loads(pickle.dumps(source)).encoded(7)
